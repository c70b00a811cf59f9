package service

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
)

// Images keeps the host's images (image.Manager).
type Images interface {
	// Import reports progress from the calling goroutine.
	Import(ctx context.Context, name, source, checksum string, progress image.Progress) (image.Info, error)
	// Upload reads size bytes (0: unknown) of content, which must end with ctx.
	Upload(ctx context.Context, name, source, checksum string, size int64, content io.Reader, progress image.Progress) (image.Info, error)
	Get(idOrName string) (image.Info, error)
	// List is sorted by name.
	List() []image.Info
	Rename(idOrName, name string) (image.Info, error)
	Delete(ctx context.Context, idOrName string) error
}

const (
	// progressEvery is how often progress within one step is sent.
	progressEvery = 200 * time.Millisecond
	// uploadIdle is how long an upload may stand still.
	uploadIdle = 2 * time.Minute
)

type imageHandler struct{ s *Service }

func (h *imageHandler) ImportImage(ctx context.Context, req *connect.Request[reflejov1.ImportImageRequest], stream *connect.ServerStream[reflejov1.ImportImageResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sent time.Time
	var at string
	progress := func(step string, done, total int64) {
		if step == at && time.Since(sent) < progressEvery {
			return
		}
		at, sent = step, time.Now()
		message := &reflejov1.ImportImageResponse{Progress: &reflejov1.Progress{Step: step, Done: done, Total: total}}
		if err := stream.Send(message); err != nil {
			cancel(err)
		}
	}
	info, err := h.s.cfg.Images.Import(ctx, req.Msg.GetName(), req.Msg.GetSource(), req.Msg.GetChecksum(), progress)
	if err != nil {
		return err
	}
	return stream.Send(&reflejov1.ImportImageResponse{Image: h.image(info)})
}

func (h *imageHandler) UploadImage(ctx context.Context, stream *connect.ClientStream[reflejov1.UploadImageRequest]) (*connect.Response[reflejov1.UploadImageResponse], error) {
	first, err := receiveFirst(ctx, func() (*reflejov1.UploadImageRequest, error) { return receivePart(stream) })
	if err != nil {
		return nil, err
	}
	header := first.GetHeader()
	if header == nil {
		return nil, fault.New(fault.Invalid, "upload image: the first message must be the header")
	}
	content, done := uploadReader(ctx, func() (*reflejov1.UploadImageRequest, error) { return receivePart(stream) }, header.GetSizeBytes())
	defer done()
	info, err := h.s.cfg.Images.Upload(ctx, header.GetName(), header.GetSource(), header.GetChecksum(), header.GetSizeBytes(), content, nil)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.UploadImageResponse{Image: h.image(info)}), nil
}

func receivePart(stream *connect.ClientStream[reflejov1.UploadImageRequest]) (*reflejov1.UploadImageRequest, error) {
	if stream.Receive() {
		return stream.Msg(), nil
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

// uploadReader reads the data of an upload's messages. It fails if the client stands still
// or ends with another size than it said (0: it did not say), and when ctx ends. done must
// be called; it frees the receiver.
func uploadReader(ctx context.Context, receive func() (*reflejov1.UploadImageRequest, error), size int64) (content io.Reader, done func()) {
	r, w := io.Pipe()
	idle := time.AfterFunc(uploadIdle, func() {
		w.CloseWithError(fault.New(fault.Aborted, "upload image: the client sent nothing for %s", uploadIdle))
	})
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		var got int64
		for {
			part, err := receive()
			idle.Stop() // from here on it is we who are slow
			switch {
			case errors.Is(err, io.EOF) && size != 0 && got != size:
				err = fault.New(fault.Invalid, "upload image: %d bytes came, the header said %d", got, size)
			case err == nil && size != 0 && got+int64(len(part.GetData())) > size:
				err = fault.New(fault.Invalid, "upload image: more than the %d bytes that the header said", size)
			case err == nil && part.GetHeader() != nil:
				err = fault.New(fault.Invalid, "upload image: a second header")
			}
			if err == nil {
				got += int64(len(part.GetData()))
				_, err = w.Write(part.GetData())
			}
			if err != nil {
				w.CloseWithError(err)
				return
			}
			idle.Reset(uploadIdle)
		}
	}()
	return r, func() { stop(); idle.Stop(); r.Close() }
}

func (h *imageHandler) GetImage(_ context.Context, req *connect.Request[reflejov1.GetImageRequest]) (*connect.Response[reflejov1.GetImageResponse], error) {
	info, err := h.s.cfg.Images.Get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.GetImageResponse{Image: h.image(info)}), nil
}

func (h *imageHandler) ListImages(context.Context, *connect.Request[reflejov1.ListImagesRequest]) (*connect.Response[reflejov1.ListImagesResponse], error) {
	users := h.users()
	list := convert(h.s.cfg.Images.List(), func(i image.Info) *reflejov1.Image { return imageToProto(i, users[i.ID]) })
	return connect.NewResponse(&reflejov1.ListImagesResponse{Images: list}), nil
}

func (h *imageHandler) UpdateImage(_ context.Context, req *connect.Request[reflejov1.UpdateImageRequest]) (*connect.Response[reflejov1.UpdateImageResponse], error) {
	info, err := h.s.cfg.Images.Rename(req.Msg.GetId(), req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.UpdateImageResponse{Image: h.image(info)}), nil
}

func (h *imageHandler) DeleteImage(ctx context.Context, req *connect.Request[reflejov1.DeleteImageRequest]) (*connect.Response[reflejov1.DeleteImageResponse], error) {
	if err := h.s.cfg.Images.Delete(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.DeleteImageResponse{}), nil
}

func (h *imageHandler) image(i image.Info) *reflejov1.Image { return imageToProto(i, h.users()[i.ID]) }

// users counts the servers of each image.
func (h *imageHandler) users() map[string]uint32 {
	users := map[string]uint32{}
	for _, v := range h.s.cfg.Views.List() {
		users[v.Spec.Image]++
	}
	return users
}

func imageToProto(i image.Info, servers uint32) *reflejov1.Image {
	return &reflejov1.Image{
		Id:           i.ID,
		Name:         i.Name,
		Source:       i.Source,
		Checksum:     i.Checksum,
		Architecture: i.Architecture,
		SizeBytes:    i.Size,
		UsedBytes:    i.Used,
		Init:         i.Init,
		Env:          i.Env,
		WorkingDir:   i.Dir,
		CreatedAt:    timestamp(i.Created),
		Servers:      servers,
		Os:           i.OS,
	}
}
