//go:build linux

package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Frames of the tests carry such a text, and no others do.
var mark = regexp.MustCompile(`frame:[a-z0-9 ]+`)

func packetSocket(iface string, protocol uint16) (fd int, err error) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return -1, err
	}
	swapped := protocol<<8 | protocol>>8
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(swapped)); err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped, Ifindex: link.Index})
}

func inject(iface string) error {
	fd, err := packetSocket(iface, 0)
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		frame, err := hex.DecodeString(s.Text())
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, frame); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

func sniff(iface, last string) error {
	fd, err := packetSocket(iface, unix.ETH_P_ALL)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if text := mark.Find(buf[:n]); text != nil {
			fmt.Println(string(text))
			if string(text) == "frame:"+last {
				return nil
			}
		}
	}
}

// connect succeeds if somebody is at one of the addresses, and says where.
func connect(network string, addresses []string) error {
	reached := make(chan string, len(addresses))
	for _, a := range addresses {
		go func() {
			c, err := net.DialTimeout(network, a, 2*time.Second)
			if err != nil {
				reached <- ""
				return
			}
			_ = c.Close()
			reached <- a
		}()
	}
	failed := errors.New("nobody")
	for range addresses {
		if a := <-reached; a != "" {
			fmt.Println(a)
			failed = nil
		}
	}
	return failed
}
