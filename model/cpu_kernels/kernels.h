// What the library exports and calls itself as well. Who defines it includes this, so that the
// compiler holds both to the same arguments.
#pragma once

#include "matmul.h"

extern "C" {

// rows.cpp
void windrose_rms_norm(const windrose::bf16* x, const windrose::bf16* weight, windrose::bf16* y,
                       int64_t rows, int64_t width, float eps);
void windrose_top_k(const windrose::bf16* logits, int64_t* ids, float* weights, int64_t rows,
                    int64_t experts, int64_t top_k);

// linear.cpp
void windrose_linear(const windrose::bf16* x, int64_t x_stride, const uint8_t* packed, int bits,
                     windrose::bf16* y, int64_t rows, int64_t inputs, int64_t outputs,
                     int threads);

// decode_attention.cpp
void windrose_rotate_and_store(windrose::bf16* heads, const windrose::bf16* cos,
                               const windrose::bf16* sin, windrose::bf16* cache,
                               const int64_t* slots, int64_t rows, int64_t num_heads,
                               int64_t kv_heads, int64_t head_dim);
void windrose_decode_attention(const windrose::bf16* query, int64_t query_stride,
                               const windrose::bf16* cache, const int64_t* tables,
                               int64_t table_stride, const int64_t* lengths, int64_t rows,
                               int64_t num_heads, int64_t kv_heads, int64_t head_dim,
                               int64_t block_size, int64_t window, float scale,
                               windrose::bf16* out, int threads);

}  // extern "C"
