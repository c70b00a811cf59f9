// Package peers is what one host's agent asks another's, besides moving servers: to keep
// backups and to give them back, and in which term it has a server.
//
//	p := peers.New(peers.Config{Credentials: source.Get, Hosts: map[string]string{"beta": "198.18.0.12:7444"}})
//	target, err := p.Open(ctx, "beta") // a backup.Target; p is a backup.Remote
//	term, err := p.Term(ctx, "beta", server)
//
//	s.Handle(peers.PurposeBackup, peers.Handler("/srv/backups"))
//	s.Handle(peers.PurposeTerm, peers.TermHandler(term))
//
// The pieces:
//
//	peers.go    who the others are, and how they are called
//	frame.go    what is said; its two directions are mirror images
//	target.go   a store as its callers see it
//	handler.go  a store where it lies
//	term.go     one question, one answer
//
// # Who may do what
//
// Every agent of the site may read and write all of a store. Disaster recovery needs it: the
// host that made a backup is gone, and which one will ask for it nobody knows before.
//
// # Backups
//
// A connection of purpose "backup/1" is one call. There is a connection per call because
// calls are few and long, and because a call that is given up is then a connection that is
// closed: nothing has to be found that still belongs to it. Inside the frames of package
// endpoint:
//
//	type  name    payload
//	  16  call    JSON (type call), at most 256 KiB; the first frame, and the only one of it
//	  17  data    1 byte … 1 MiB of a backup's file, as it is
//	  18  commit  none
//	  19  close   none
//	  20  answer  JSON (type answer), at most 256 KiB
//
//	method  the caller sends               the store sends
//	append  call, data …, commit or close  answer with the state, answer once that is done
//	open    call                           answer, data …, answer at the file's end
//	list    call                           answers with at most 1000 files, all but the last with more
//	delete  call                           answer
//	load    call                           answer with the note
//	swap    call                           answer
//
// Whoever can't go on says why with endpoint's own frame of type 3, with the kind that the
// error had at the target. Fields of JSON that are not known belong to later versions and
// are ignored. A file that is open for writing at one connection is refused at others with
// fault.Unavailable: the other one may be what is left of a link that was lost, which its
// store notices only some seconds later than the caller does.
//
// # Terms
//
// A connection of purpose "term/1":
//
//	type  name      payload
//	  16  question  36 bytes: the server's id
//	  17  answer    8 bytes, big-endian: the term in which the host has the server; 0: it has none
package peers
