// Where the keys and values of one layer lie.
#pragma once

#include "matmul.h"

namespace windrose {

// A layer's cache: [slots][2 * kv_heads][head_dim], the keys' heads before the values'.
struct Cache {
  const bf16* base;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t block_size;
  const bf16* slot(const int64_t* table, int64_t position) const {
    const int64_t at = table[position / block_size] * block_size + position % block_size;
    return base + at * 2 * kv_heads * head_dim;
  }
};

}  // namespace windrose
