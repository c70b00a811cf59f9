package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Keep the images that servers are made from",
		&cobra.Command{
			Use:     "list",
			Aliases: []string{"ls"},
			Short:   "List the images of all hosts",
			Args:    exactly(0, "no arguments"),
			RunE:    func(c *cobra.Command, _ []string) error { return a.imageList(c.Context()) },
		},
		a.importCommand(), a.uploadCommand(),
		&cobra.Command{
			Use:   "rename IMAGE NAME",
			Short: "Rename an image on every host that has it",
			Args:  exactly(2, "an image and its new name"),
			RunE: func(c *cobra.Command, args []string) error {
				return onEach(c.Context(), a, "image", args[0], func(ctx context.Context, c *api.Client) error {
					_, err := c.Images.UpdateImage(ctx, connect.NewRequest(&reflejov1.UpdateImageRequest{Id: args[0], Name: args[1]}))
					return err
				})
			},
		},
		&cobra.Command{
			Use:   "delete IMAGE",
			Short: "Delete an image from every host that has it",
			Args:  exactly(1, "an image's name or id"),
			RunE: func(c *cobra.Command, args []string) error {
				return onEach(c.Context(), a, "image", args[0], func(ctx context.Context, c *api.Client) error {
					_, err := c.Images.DeleteImage(ctx, connect.NewRequest(&reflejov1.DeleteImageRequest{Id: args[0]}))
					return err
				})
			},
		},
	)
}

// onEach does something to an object on each host that has it; none has it is an error.
func onEach(ctx context.Context, a *app, what, idOrName string, f func(context.Context, *api.Client) error) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	answers := ask(ctx, clients, func(ctx context.Context, c *api.Client) (struct{}, error) { return struct{}{}, f(ctx, c) })
	missing := 0
	for i, r := range answers {
		if fault.Is(r.err, fault.NotFound) {
			missing++
			answers[i].err = nil
		}
	}
	if missing == len(answers) {
		names, _ := a.hostNames()
		return fault.New(fault.NotFound, "no %s %q on %s", what, idOrName, strings.Join(names, ", "))
	}
	return failures(answers)
}

func (a *app) imageList(ctx context.Context) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answers := ask(ctx, clients, func(ctx context.Context, c *api.Client) ([]*reflejov1.Image, error) {
		res, err := c.Images.ListImages(ctx, connect.NewRequest(&reflejov1.ListImagesRequest{}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetImages(), nil
	})
	if a.flags.output == "json" {
		// The message does not say which host it is on: the answer is an object per host.
		byHost := map[string]any{}
		for _, r := range answers {
			if r.err != nil {
				continue
			}
			list := []any{}
			for _, i := range r.value {
				text, err := messageJSON(i)
				if err != nil {
					return err
				}
				list = append(list, text)
			}
			byHost[r.client.Name()] = list
		}
		if err := a.printJSON(byHost); err != nil {
			return err
		}
		return failures(answers)
	}
	var rows [][]string
	for _, r := range answers {
		for _, i := range r.value {
			rows = append(rows, []string{
				i.GetName(), r.client.Name(), shortID(i.GetId()), dash(i.GetOs()), dash(i.GetArchitecture()),
				roundBytes(i.GetUsedBytes()), fmt.Sprint(i.GetServers()), dash(i.GetSource()),
			})
		}
	}
	slices.SortStableFunc(rows, func(x, y []string) int { return strings.Compare(x[0], y[0]) })
	if err := a.table([]string{"NAME", "HOST", "ID", "SYSTEM", "ARCH", "SIZE", "SERVERS", "SOURCE"}, rows); err != nil {
		return err
	}
	return failures(answers)
}

func (a *app) importCommand() *cobra.Command {
	var checksum string
	c := &cobra.Command{
		Use:   "import NAME SOURCE",
		Short: "Make an image from a registry or from a file on the hosts",
		Example: `  reflejo image import debian oci://registry.example/debian:12
  reflejo image import debian host:/var/lib/reflejo/images/debian.tar.zst --host alpha`,
		Args: exactly(2, "a name and a source"),
		RunE: func(c *cobra.Command, args []string) error {
			req := &reflejov1.ImportImageRequest{Name: args[0], Source: args[1], Checksum: checksum}
			return a.onImages(c.Context(), func(ctx context.Context, client *api.Client, t *task) (*reflejov1.Image, error) {
				return importImage(ctx, client, req, t)
			})
		},
	}
	c.Flags().StringVar(&checksum, "checksum", "", "\"sha256:…\" of the manifest (registry) or of the file; anything else is refused")
	return c
}

// onImages makes an image on all hosts at once and prints what was made.
func (a *app) onImages(ctx context.Context, f func(context.Context, *api.Client, *task) (*reflejov1.Image, error)) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	p := a.progress()
	tasks := map[*api.Client]*task{}
	for _, c := range clients {
		tasks[c] = p.task(c.Name(), true)
	}
	answers := ask(ctx, clients, func(ctx context.Context, c *api.Client) (*reflejov1.Image, error) {
		defer tasks[c].end()
		return f(ctx, c, tasks[c])
	})
	p.stop()
	for _, r := range answers {
		if r.err != nil {
			continue
		}
		if a.flags.output == "json" {
			err = errors.Join(err, a.printMessage(r.value))
		} else {
			fmt.Fprintf(a.out, "%s: %s is %s\n", r.client.Name(), printable(r.value.GetName()), r.value.GetId())
		}
	}
	return errors.Join(err, failures(answers))
}

func importImage(ctx context.Context, client *api.Client, req *reflejov1.ImportImageRequest, t *task) (*reflejov1.Image, error) {
	stream, err := client.Images.ImportImage(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var image *reflejov1.Image
	for stream.Receive() {
		m := stream.Msg()
		if m.GetImage() != nil {
			image = m.GetImage()
		} else {
			t.at(m.GetProgress().GetStep(), m.GetProgress().GetDone(), m.GetProgress().GetTotal())
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if image == nil {
		return nil, errors.New("the agent ended the import without an image")
	}
	return image, nil
}

func (a *app) uploadCommand() *cobra.Command {
	var checksum string
	c := &cobra.Command{
		Use:   "upload NAME FILE",
		Short: "Make an image from a tar here (root file system or OCI layout; plain, gz, zst or xz)",
		Args:  exactly(2, "a name and a file"),
		RunE: func(c *cobra.Command, args []string) error {
			header := &reflejov1.UploadImageHeader{Name: args[0], Source: "upload:" + filepath.Base(args[1]), Checksum: checksum}
			return a.onImages(c.Context(), func(ctx context.Context, client *api.Client, t *task) (*reflejov1.Image, error) {
				return uploadImage(ctx, client, header, args[1], t)
			})
		},
	}
	c.Flags().StringVar(&checksum, "checksum", "", "\"sha256:…\" of the file; anything else is refused")
	return c
}

func uploadImage(ctx context.Context, client *api.Client, h *reflejov1.UploadImageHeader, path string, t *task) (*reflejov1.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("upload image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("upload image: %s is not a file", path), err)
	}
	header := &reflejov1.UploadImageHeader{Name: h.GetName(), Source: h.GetSource(), Checksum: h.GetChecksum(), SizeBytes: info.Size()}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a file that can't be read must not look like its end
	stream := client.Images.UploadImage(ctx)
	err = stream.Send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: header}})
	buffer := make([]byte, api.MaxChunk/2)
	for sent := int64(0); err == nil; {
		var n int
		n, err = f.Read(buffer)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("upload image: %w", err)
		}
		if n > 0 {
			err = stream.Send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Data{Data: buffer[:n]}})
		}
		sent += int64(n)
		t.at("uploading", sent, info.Size())
	}
	t.at("unpacking", 0, 0)
	// Also when the agent refused on the way: then the reason is in its answer.
	res, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return res.Msg.GetImage(), nil
}
