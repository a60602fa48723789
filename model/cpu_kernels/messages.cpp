// A message with each of several peers, in one call: after a wait a core begins with cold caches,
// and the same in Python is many times as much code.
#include "messages.h"

using namespace windrose;

extern "C" {

// model/cpu_kernels/row_inbox.py has the same fields.
struct Mail {
  int64_t count;         // of peers
  const int32_t* files;  // their sockets
  char* const* bodies;
  const int64_t* sizes;  // of the bodies, or the most they may have; 0: no message with this peer
  int64_t* moved;        // what became of each: bytes, or an errno below 0
};

// Waits for a message from each peer in turn; `moved` has the bodies' sizes. Returns 0, or 1 + the
// first peer that failed, behind which nothing was tried.
int64_t windrose_receive_messages(const Mail* mail, int64_t tag) {
  for (int64_t i = 0; i < mail->count; ++i) {
    mail->moved[i] = 0;
    if (!mail->sizes[i]) continue;
    mail->moved[i] = receive_message(mail->files[i], mail->bodies[i], mail->sizes[i], tag);
    if (mail->moved[i] < 0) return i + 1;
  }
  return 0;
}

// Gives the kernel what it takes at once of a message to each peer; `moved` has how much, heads
// included. Returns how many messages it did not take whole.
int64_t windrose_send_messages(const Mail* mail, int64_t tag) {
  int64_t left = 0;
  for (int64_t i = 0; i < mail->count; ++i) {
    const int64_t size = mail->sizes[i];
    if (!size) continue;
    mail->moved[i] = send_message(mail->files[i], mail->bodies[i], size, tag);
    left += mail->moved[i] != int64_t(sizeof(Head)) + size;
  }
  return left;
}

}  // extern "C"
