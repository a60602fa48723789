// Counting how often a token goes where the token before it in its sequence went.
#include <cstdint>

extern "C" {

// Row after row: compares its choices, ids[layers, rows, top_k], with those kept in the slot of
// the token before it (previous[rows], -1: there is none), then keeps them in its own, slots[rows].
// chosen is [slots + 1, top_k, layers], a slot s at s + 1. Adds to first[layers] where both first
// choices are the same, to any[layers] where they have an expert in common.
void windrose_count_repeats(const int64_t* ids, const int64_t* slots, const int64_t* previous,
                            int64_t rows, int64_t layers, int64_t top_k, int8_t* chosen,
                            int64_t* first, int64_t* any) {
  const int64_t width = top_k * layers;
  for (int64_t row = 0; row < rows; ++row) {
    const int8_t* before = chosen + (previous[row] + 1) * width;
    int8_t* own = chosen + (slots[row] + 1) * width;
    for (int64_t layer = 0; layer < layers; ++layer) {
      const int64_t* now = ids + (layer * rows + row) * top_k;
      first[layer] += now[0] == before[layer];
      bool common = false;
      for (int64_t i = 0; i < top_k; ++i) {
        for (int64_t j = 0; j < top_k; ++j) common |= now[i] == before[j * layers + layer];
      }
      any[layer] += common;
      for (int64_t i = 0; i < top_k; ++i) own[i * layers + layer] = int8_t(now[i]);
    }
  }
}

}  // extern "C"
