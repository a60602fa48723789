// Sorting a layer's rows into the messages to the expert ranks, and adding up what comes back.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "matmul.h"
#include "messages.h"

using namespace windrose;

extern "C" {

// One dispatch: model/cpu_kernels/row_flight.py has the same fields.
struct Flight {
  int64_t row_bytes;
  int64_t top_k;
  int64_t num_ranks;
  int64_t most_ranks;  // that a row can go to
  int64_t nothing;     // the place of a sum that is 0
  const int64_t* ranks;
  char* const* messages;  // of each rank; the layout: model/row_message.py
  int64_t* counts;        // rows of each rank's message
  int64_t* places;        // [most_ranks, rows]: where each row's sums are to lie
  char* sums;             // of all ranks one after another
  const int32_t* files;   // each rank's socket
  int64_t* moved;         // of each rank's message, or an errno below 0
  int64_t sent_bytes;     // of all messages
  double arrived_s;       // when the last sums came, as Python's perf_counter
};

}  // extern "C"

namespace {

// Writes rank r's message: the rows of x that have a choice there. `place` is that of the first
// row's sums. Returns how many bytes it has.
template <class Holder>
int64_t pack(const Flight& flight, int64_t r, const char* x, const int64_t* ids,
             const float* weights, const Holder& holder, int64_t rows, int64_t& place) {
  constexpr int64_t kAlign = 16;
  const int64_t top_k = flight.top_k, row_bytes = flight.row_bytes, rank = flight.ranks[r];
  const auto goes = [&](int64_t row) {
    for (int64_t k = 0; k < top_k; ++k) {
      if (holder(row * top_k + k) == rank) return true;
    }
    return false;
  };
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) count += goes(row);
  flight.counts[r] = count;
  char* message = flight.messages[r];
  const int32_t header = int32_t(count);
  std::memcpy(message, &header, sizeof header);
  int32_t* to_ids = reinterpret_cast<int32_t*>(message + kAlign);
  float* to_weights = reinterpret_cast<float*>(to_ids + count * top_k);
  const int64_t routing = kAlign + count * top_k * 8;
  char* to_rows = message + (routing + kAlign - 1) / kAlign * kAlign;
  for (int64_t row = 0; count && row < rows; ++row) {
    if (!goes(row)) continue;
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t choice = row * top_k + k;
      *to_ids++ = holder(choice) == rank ? int32_t(ids[choice]) : -1;
      *to_weights++ = weights[choice];
    }
    std::memcpy(to_rows, x + row * row_bytes, row_bytes);
    to_rows += row_bytes;
    int64_t* at = flight.places + row;
    while (*at != flight.nothing) at += rows;
    *at = place++;
  }
  return to_rows - message;
}

// pack() of each rank in turn, and then `then(r, bytes)`.
template <class Then>
void pack_each(const Flight& flight, const char* x, const int64_t* ids, const float* weights,
               const int64_t* only, const int64_t* holders, int64_t rows, const Then& then) {
  std::fill_n(flight.places, flight.most_ranks * rows, flight.nothing);
  int64_t place = 0;
  const auto holder = [&](int64_t choice) { return only ? only[ids[choice]] : holders[choice]; };
  for (int64_t r = 0; r < flight.num_ranks; ++r) {
    then(r, pack(flight, r, x, ids, weights, holder, rows, place));
  }
}

double now_s() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

}  // namespace

extern "C" {

// Writes one message per rank with the rows of x that have a choice there, and their places. ids
// int64 and weights, both [rows, top_k] and contiguous. The rank that computes a choice is
// holders[rows, top_k]'s, or by its id only[experts]'s where that is given.
void windrose_pack_rows(const Flight* flight, const char* x, const int64_t* ids,
                        const float* weights, const int64_t* only, const int64_t* holders,
                        int64_t rows) {
  pack_each(*flight, x, ids, weights, only, holders, rows, [](int64_t, int64_t) {});
}

// The same, and sends each message as soon as it is written. Returns how many of them the kernel
// did not take whole at once: see `moved`.
int64_t windrose_send_rows(Flight* flight, const char* x, const int64_t* ids, const float* weights,
                           const int64_t* only, const int64_t* holders, int64_t rows,
                           int64_t tag) {
  int64_t left = 0;
  flight->sent_bytes = 0;
  const auto send = [&](int64_t r, int64_t size) {
    flight->moved[r] = send_message(flight->files[r], flight->messages[r], size, tag);
    flight->sent_bytes += size;
    left += flight->moved[r] != int64_t(sizeof(Head)) + size;
  };
  pack_each(*flight, x, ids, weights, only, holders, rows, send);
  return left;
}

// y[rows] bf16: each row's sums added up in the order of ranks, rounded after each.
void windrose_add_up(const Flight* flight, bf16* y, int64_t rows) {
  const int64_t width = flight->row_bytes / int64_t(sizeof(bf16));
  const auto sum_at = [&](int64_t place) {
    return reinterpret_cast<const bf16*>(flight->sums) + place * width;
  };
  for (int64_t row = 0; row < rows; ++row, y += width) {
    std::memcpy(y, sum_at(flight->places[row]), flight->row_bytes);
    for (int64_t j = 1; j < flight->most_ranks; ++j) {
      const int64_t place = flight->places[j * rows + row];
      if (place == flight->nothing) break;
      const bf16* sum = sum_at(place);
      int64_t i = 0;
      for (; i + 16 <= width; i += 16) store_bf16(y + i, load_bf16(y + i) + load_bf16(sum + i));
      if (i < width) {
        const int64_t rest = width - i;
        store_bf16(y + i, load_bf16(y + i, rest) + load_bf16(sum + i, rest), rest);
      }
    }
  }
}

// Waits for every rank's sums, and adds them up in y as windrose_add_up does unless that is null.
// Returns 0, or 1 + the first rank that failed: see `moved`.
int64_t windrose_receive_sums(Flight* flight, bf16* y, int64_t rows, int64_t tag) {
  char* to = flight->sums;
  for (int64_t r = 0; r < flight->num_ranks; ++r) {
    const int64_t size = flight->counts[r] * flight->row_bytes;
    if (!size) continue;
    const int64_t got = receive_message(flight->files[r], to, size, tag);
    flight->moved[r] = got == size || got < 0 ? got : -EPROTO;
    if (flight->moved[r] < 0) return r + 1;
    to += size;
  }
  flight->arrived_s = now_s();
  if (y) windrose_add_up(flight, y, rows);
  return 0;
}

}  // extern "C"
