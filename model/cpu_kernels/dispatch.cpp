// Sorting a layer's rows into the messages to the expert ranks.
#include <cstdint>
#include <cstring>

extern "C" {

// Writes one message per rank (the layout: model/row_message.py) with the rows of x, row_bytes
// each, that have a choice there: of ids, weights and holders, all [rows, top_k] and contiguous,
// holders says which rank computes a choice. counts[ranks] gets the rows of each message;
// sum_rows[most_ranks, rows] gets for each row the places of its sums when those of all ranks lie
// one after another, in the order of ranks, and `nothing` where there are no more.
void windrose_pack_rows(const char* x, int64_t row_bytes, const int64_t* ids,
                        const float* weights, const int64_t* holders, int64_t rows, int64_t top_k,
                        const int64_t* ranks, int64_t num_ranks, char* const* messages,
                        int64_t* counts, int64_t* sum_rows, int64_t most_ranks, int64_t nothing) {
  constexpr int64_t kAlign = 16;
  for (int64_t i = 0; i < most_ranks * rows; ++i) sum_rows[i] = nothing;
  int64_t place = 0;
  for (int64_t r = 0; r < num_ranks; ++r) {
    const int64_t rank = ranks[r];
    const auto goes = [&](int64_t row) {
      for (int64_t k = 0; k < top_k; ++k) {
        if (holders[row * top_k + k] == rank) return true;
      }
      return false;
    };
    int64_t count = 0;
    for (int64_t row = 0; row < rows; ++row) count += goes(row);
    counts[r] = count;
    const int32_t header = int32_t(count);
    std::memcpy(messages[r], &header, sizeof header);
    if (!count) continue;
    int32_t* to_ids = reinterpret_cast<int32_t*>(messages[r] + kAlign);
    float* to_weights = reinterpret_cast<float*>(to_ids + count * top_k);
    const int64_t routing = kAlign + count * top_k * 8;
    char* to_rows = messages[r] + (routing + kAlign - 1) / kAlign * kAlign;
    for (int64_t row = 0; row < rows; ++row) {
      if (!goes(row)) continue;
      for (int64_t k = 0; k < top_k; ++k) {
        const int64_t choice = row * top_k + k;
        *to_ids++ = holders[choice] == rank ? int32_t(ids[choice]) : -1;
        *to_weights++ = weights[choice];
      }
      std::memcpy(to_rows, x + row * row_bytes, row_bytes);
      to_rows += row_bytes;
      int64_t* sum = sum_rows + row;
      while (*sum != nothing) sum += rows;
      *sum = place++;
    }
  }
}

}  // extern "C"
