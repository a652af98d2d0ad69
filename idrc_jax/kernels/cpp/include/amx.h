// Products of bfloat16 numbers, summed in float32, by the tiles of Intel's AMX: 16 rows of 32 numbers times 32 rows of 16.
//
// IDRC_EMULATE_AMX builds the same in plain C++, which is slow, to test what is made of them on any machine.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simd.h"

#if defined(IDRC_EMULATE_AMX)
#define IDRC_HAS_AMX
#elif defined(__linux__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && IDRC_LANES == 16
#define IDRC_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(IDRC_HAS_AMX)

namespace idrc {

using Half = std::uint16_t;  // a bfloat16's bits

constexpr int kTile = 16, kTileDepth = 32;  // rows and columns of sums; what is summed at a time

inline float FromHalf(Half value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline Half ToHalf(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u), none = bits | 0x400000u;
  return static_cast<Half>((value == value ? rounded : none) >> 16);
}

#if defined(IDRC_EMULATE_AMX)

class Amx {
 public:
  static bool Usable() { return true; }

  template <int kTile>
  static void Clear() {
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  // 16 rows of 64 bytes that lie `step` bytes apart.
  template <int kTile>
  static void Read(const Half* from, std::ptrdiff_t step) {
    for (int r = 0; r < 16; ++r) std::memcpy(tiles_[kTile] + 64 * r, reinterpret_cast<const char*>(from) + r * step, 64);
  }
  template <int kTile>
  static void Write(float* to) {
    std::memcpy(to, tiles_[kTile], sizeof tiles_[kTile]);
  }
  // Adds to sums [16, 16] the product of left [16, 32] and right [16, 16, 2], whose pairs are neighbours in a column.
  template <int kSums, int kLeft, int kRight>
  __attribute__((noinline)) static void Add() {
    for (int r = 0; r < 16; ++r) {
      for (int c = 0; c < 16; ++c) {
        float sum;
        char* at = tiles_[kSums] + 64 * r + 4 * c;
        std::memcpy(&sum, at, sizeof sum);
        for (int k = 0; k < 32; ++k) {
          Half left, right;
          std::memcpy(&left, tiles_[kLeft] + 64 * r + 2 * k, sizeof left);
          std::memcpy(&right, tiles_[kRight] + 64 * (k / 2) + 4 * c + 2 * (k % 2), sizeof right);
          sum += FromHalf(left) * FromHalf(right);
        }
        std::memcpy(at, &sum, sizeof sum);
      }
    }
  }

 private:
  static inline thread_local char tiles_[8][16 * 64];
};

#else

// Whoever holds one may use the tiles of its thread, all of them whole.
class Amx {
 public:
  Amx() {
    struct alignas(64) {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~Amx() { asm volatile("tilerelease"); }
  Amx(const Amx&) = delete;

  // Whether the system lets this process use them.
  static bool Usable() {
    constexpr int kAskForPermission = 0x1023, kTileData = 18;  // of Linux' arch_prctl
    static const bool usable = syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
    return usable;
  }

  template <int kTile>
  static void Clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static void Read(const Half* from, std::ptrdiff_t step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void Write(float* to) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(std::ptrdiff_t{64}), "i"(kTile) : "memory");
  }
  template <int kSums, int kLeft, int kRight>
  static void Add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
  }
};

#endif

}  // namespace idrc

#endif
