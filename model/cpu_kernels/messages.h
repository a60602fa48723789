// Messages over connected stream sockets: how long the body is and its tag, 16 bytes; the body.
// The other end may well be Python: actors/ranks/socket_group.py has the same form.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstdint>

namespace windrose {

struct Head {
  int64_t size;
  int64_t tag;
};

// Gives the kernel what it takes at once. Returns how many bytes of head and body that is, or an
// errno below 0.
inline int64_t send_message(int file, const void* body, int64_t size, int64_t tag) {
  Head head{size, tag};
  iovec pieces[] = {{&head, sizeof head}, {const_cast<void*>(body), size_t(size)}};
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = 2;
  for (;;) {
    const ssize_t sent = sendmsg(file, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    if (errno != EINTR) return -errno;
  }
}

// Waits until all of it is there. 0, or an errno below 0: EPIPE if the other end has closed.
inline int64_t receive_all(int file, void* to, int64_t size) {
  char* at = static_cast<char*>(to);
  while (size > 0) {
    const ssize_t got = recv(file, at, size, MSG_WAITALL);
    if (got == 0) return -EPIPE;
    if (got < 0 && errno != EINTR) return -errno;
    if (got > 0) at += got, size -= got;
  }
  return 0;
}

// Waits for a message of this tag and at most so many bytes. Returns its size, or an errno below
// 0: EAGAIN after the socket's own timeout, EPROTO if it is another message.
inline int64_t receive_message(int file, void* body, int64_t most, int64_t tag) {
  Head head;
  if (const int64_t error = receive_all(file, &head, sizeof head)) return error;
  if (head.tag != tag || head.size < 0 || head.size > most) return -EPROTO;
  if (const int64_t error = receive_all(file, body, head.size)) return error;
  return head.size;
}

}  // namespace windrose
