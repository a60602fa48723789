// What is in the vectors.
#pragma once

#include <cstdint>

namespace windrose {

using bf16 = uint16_t;
using Pair = uint32_t;   // two neighbouring bf16, the first one low
using Lanes = uint32_t;  // a bit per lane

inline Lanes first_lanes(int64_t count) { return count >= 16 ? 0xffff : (1u << count) - 1; }

}  // namespace windrose
