package provider

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// isLocal reports whether a source is a file or directory where Terraform runs, not
// something that hosts fetch themselves.
func isLocal(source string) bool {
	return !strings.HasPrefix(source, "oci://") && !strings.HasPrefix(source, "host:")
}

// checkLocal finds out what a local source is. The error says what is wrong with it.
func checkLocal(source string) (isDir bool, size int64, err error) {
	info, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, 0, fmt.Errorf("%s is not there: write the path of a tar file or directory, \"oci://registry/name:tag\" or \"host:/path\"", source)
	case err != nil:
		return false, 0, err
	case info.IsDir():
		return true, 0, nil
	case !info.Mode().IsRegular():
		return false, 0, fmt.Errorf("%s is neither a file nor a directory", source)
	case info.Size() == 0:
		return false, 0, fmt.Errorf("%s is empty", source)
	}
	return false, info.Size(), nil
}

// importImage makes the image on the host, from wherever it comes, and reports progress to
// the log. A host that goes away meanwhile is asked again until ctx ends: asking twice is
// one import.
func (h *host) importImage(ctx context.Context, m imageModel) (*reflejov1.Image, error) {
	once := h.importOnce
	if isLocal(m.Source.ValueString()) {
		once = h.upload
	}
	for pause, attempt := firstPause, 1; ; pause, attempt = min(2*pause, longPause), attempt+1 {
		image, err := once(ctx, m)
		if err == nil || !fault.Is(err, fault.Unavailable) || attempt == 5 || !sleep(ctx, pause) {
			return image, err
		}
		tflog.Warn(ctx, "import interrupted, trying again", map[string]any{"image": m.Name.ValueString(), "host": h.name, "error": err.Error()})
	}
}

func (h *host) importOnce(ctx context.Context, m imageModel) (*reflejov1.Image, error) {
	stream, err := h.Images.ImportImage(ctx, connect.NewRequest(&reflejov1.ImportImageRequest{
		Name: m.Name.ValueString(), Source: m.Source.ValueString(), Checksum: m.Checksum.ValueString(),
	}))
	if err != nil {
		return nil, api.ErrorOf(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if image := stream.Msg().GetImage(); image != nil {
			return image, nil
		}
		p := stream.Msg().GetProgress()
		h.progress(ctx, m, p.GetStep(), p.GetDone(), p.GetTotal())
	}
	if err := stream.Err(); err != nil {
		return nil, api.ErrorOf(err)
	}
	return nil, fault.New(fault.Unavailable, "host %s ended the import without an answer", h.name)
}

func (h *host) progress(ctx context.Context, m imageModel, step string, done, total int64) {
	tflog.Info(ctx, "importing image", map[string]any{"image": m.Name.ValueString(), "host": h.name, "step": step, "done": done, "total": total})
}

// upload sends a local tar, or a directory as one.
func (h *host) upload(ctx context.Context, m imageModel) (*reflejov1.Image, error) {
	source := m.Source.ValueString()
	isDir, size, err := checkLocal(source)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Field: "source", Err: err}
	}
	content, err := open(source, isDir)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Field: "source", Err: err}
	}
	defer content.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := h.Images.UploadImage(ctx)
	header := &reflejov1.UploadImageHeader{Name: m.Name.ValueString(), Source: source, Checksum: m.Checksum.ValueString(), SizeBytes: size}
	err = stream.Send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: header}})
	chunk, sent, reported := make([]byte, api.MaxChunk), int64(0), time.Now()
	for err == nil {
		n, readErr := io.ReadFull(content, chunk)
		if n > 0 {
			err = stream.Send(&reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Data{Data: chunk[:n]}})
			sent += int64(n)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Field: "source", Err: fmt.Errorf("read %s: %w", source, readErr)}
		}
		if time.Since(reported) > time.Second {
			h.progress(ctx, m, "uploading", sent, size)
			reported = time.Now()
		}
	}
	// If sending failed, the answer says why.
	resp, answerErr := stream.CloseAndReceive()
	if answerErr != nil {
		return nil, api.ErrorOf(answerErr)
	}
	return resp.Msg.GetImage(), nil
}

func open(source string, isDir bool) (io.ReadCloser, error) {
	if !isDir {
		return os.Open(source)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarDirectory(w, source)) }()
	return r, nil
}

// epoch is the time of every file of a directory that is made into an image: checkouts of
// the same content at different times must give the same image.
var epoch = time.Unix(0, 0).UTC()

// tarDirectory writes a directory as a root file system: the same content gives the same
// bytes wherever and whenever. Owners are kept for root alone, who can have them right;
// for everybody else all belongs to root. Sockets are left out.
func tarDirectory(w io.Writer, dir string) error {
	keepOwners := os.Getuid() == 0
	archive := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil || relative == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.Mode()&fs.ModeSocket != 0 {
			return err
		}
		return addToTar(archive, name, filepath.ToSlash(relative), info, keepOwners)
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	return archive.Close()
}

func addToTar(archive *tar.Writer, name, as string, info fs.FileInfo, keepOwners bool) error {
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(name)
		if err != nil {
			return err
		}
		link = filepath.ToSlash(target)
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name, header.Format = as, tar.FormatPAX
	if info.IsDir() {
		header.Name += "/"
	}
	header.ModTime, header.AccessTime, header.ChangeTime = epoch, time.Time{}, time.Time{}
	header.Uname, header.Gname = "", ""
	if !keepOwners {
		header.Uid, header.Gid = 0, 0
	}
	if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyN(archive, file, header.Size)
	return err
}
