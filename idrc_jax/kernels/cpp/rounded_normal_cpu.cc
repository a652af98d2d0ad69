// Rounded normal integers: the random bits of Threefry-2x32-20 (Salmon et al. 2011), looked up in a table of thresholds.
// See `rounded_normal_cpu.py`.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

constexpr int kPlacesACell = 5, kOctaves = 64;
constexpr std::int64_t kNumbersATask = 16384;
constexpr int kBlocks = 4 * kLanes;  // that are computed side by side

// Both words of the blocks whose counters are (1, first), (1, first + 1) ...
void Words(const std::uint32_t* key, std::uint32_t first, std::uint32_t* high, std::uint32_t* low) {
  constexpr int kVectors = kBlocks / kLanes;
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const std::uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  Bits x[kVectors], y[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    for (int i = 0; i < kLanes; ++i) y[v][i] = first + v * kLanes + i;
    x[v] = Bits{} + (1 + keys[0]);
    y[v] += keys[1];
  }
#pragma GCC unroll 5
  for (int injection = 0; injection < 5; ++injection) {
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
      const int rotation = kRotations[injection % 2][round];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        x[v] += y[v];
        y[v] = x[v] ^ ((y[v] << rotation) | (y[v] >> (32 - rotation)));
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      x[v] += keys[(injection + 1) % 3];
      y[v] += keys[(injection + 2) % 3] + (injection + 1);
    }
  }
  std::memcpy(high, x, sizeof x);
  std::memcpy(low, y, sizeof y);
}

struct Table {
  const std::uint32_t* thresholds;  // pairs of words, low word first
  const std::uint16_t* guide;
  int bits;

  // Plus or minus the number of thresholds above the 63 bits behind the sign.
  std::int32_t Look(std::uint32_t high, std::uint32_t low) const {
    const std::uint64_t flip = std::uint64_t{0} - (high >> 31);
    const std::uint64_t t = ((std::uint64_t{high} << 32) | low) ^ flip;
    const int zeros = t ? __builtin_clzll(t) : kOctaves;
    const std::uint64_t mantissa = (t << (zeros & 63) << 1) >> (64 - bits);
    const std::int32_t above = guide[(std::size_t(zeros - 1) << bits) | mantissa];
    const std::uint64_t near = (std::uint64_t{thresholds[2 * above + 1]} << 32) | thresholds[2 * above];
    const std::int32_t found = above + (t < near), negative = ~static_cast<std::int32_t>(flip);
    return (found ^ negative) - negative;
  }

  void LookAll(const std::uint32_t* high, const std::uint32_t* low, int count, std::int32_t* to) const {
    for (int i = 0; i < count; ++i) to[i] = Look(high[i], low[i]);
  }
};

ffi::Error Integers(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> keys, ffi::Buffer<ffi::U32> thresholds,
                    ffi::Buffer<ffi::U16> guide, ffi::Buffer<ffi::S32> row, ffi::ResultBuffer<ffi::S32> result) {
  const auto shape = thresholds.dimensions();
  const std::int64_t rows = row.element_count(), all = result->element_count();
  if (shape.size() != 3 || shape[1] % kPlacesACell != 0 || shape[2] != 2 || rows == 0 || all % rows != 0 ||
      static_cast<std::int64_t>(keys.element_count()) != 2 * rows) {
    return ffi::Error::InvalidArgument("Expected keys and tables of N rows, got other shapes.");
  }
  const std::int64_t places = shape[1], cells = kOctaves * (places / kPlacesACell), each = all / rows;
  if (static_cast<std::int64_t>(guide.element_count()) != shape[0] * cells) {
    return ffi::Error::InvalidArgument("Expected a guide for each table, got another shape.");
  }
  int bits = 0;
  while ((kPlacesACell << bits) < places) ++bits;
  const std::int64_t together = std::max<std::int64_t>(kNumbersATask / std::max<std::int64_t>(each, 1), 1);
  ForEachTask(pool, static_cast<int>((rows + together - 1) / together), [&] {
    return [&](int task) {
      const std::int64_t begin = task * together, end = std::min(rows, begin + together);
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t u = row.typed_data()[r];
        const Table table{thresholds.typed_data() + 2 * places * u, guide.typed_data() + cells * u, bits};
        std::int32_t* to = result->typed_data() + r * each;
        for (std::int64_t i = 0; i < each; i += kBlocks) {
          alignas(64) std::uint32_t high[kBlocks], low[kBlocks];
          Words(keys.typed_data() + 2 * r, static_cast<std::uint32_t>(i), high, low);
          table.LookAll(high, low, static_cast<int>(std::min<std::int64_t>(each - i, kBlocks)), to + i);
        }
      }
    };
  });
  return ffi::Error::Success();
}

// Whether the look-up gives the number of thresholds above, counted one by one, at and beside all of them and elsewhere.
bool LooksRight() {
  constexpr int kBits = 3, kCount = 30;
  std::vector<std::uint64_t> above(kCount);
  for (int j = 0; j < kCount; ++j) above[j] = static_cast<std::uint64_t>(std::ldexp(std::pow(0.7, j), 62)) + 12345;
  const auto count = [&](std::uint64_t t) {
    return static_cast<int>(std::count_if(above.begin(), above.end(), [&](std::uint64_t one) { return one > t; }));
  };
  std::vector<std::uint32_t> thresholds(2 * (kPlacesACell << kBits));
  for (int j = 0; j < kCount; ++j) {
    thresholds[2 * j] = static_cast<std::uint32_t>(above[j]);
    thresholds[2 * j + 1] = static_cast<std::uint32_t>(above[j] >> 32);
  }
  std::vector<std::uint16_t> guide(kOctaves << kBits, kCount);
  for (int octave = 0; octave < kOctaves - 1; ++octave) {
    const int highest = kOctaves - 2 - octave;
    for (std::uint64_t mantissa = 0; mantissa < 1u << kBits; ++mantissa) {
      const std::uint64_t first = std::uint64_t{1} << highest;
      const std::uint64_t last = highest < kBits ? first + (mantissa >> (kBits - highest))
                                                 : first + ((mantissa + 1) << (highest - kBits)) - 1;
      guide[(octave << kBits) | mantissa] = static_cast<std::uint16_t>(count(last));
    }
  }
  const Table table{thresholds.data(), guide.data(), kBits};
  std::vector<std::uint64_t> tried{0, 1, 2, 3, 7, 8, 9, (std::uint64_t{1} << 32) - 1, std::uint64_t{1} << 32};
  for (const std::uint64_t one : above) tried.insert(tried.end(), {one - 1, one, one + 1});
  std::uint64_t random = 1;
  for (int i = 0; i < 10000; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    tried.push_back(random >> (1 + i % 60));
  }
  for (const std::uint64_t t : tried) {
    const int expected = count(t);
    const auto look = [&](std::uint64_t word) {
      return table.Look(static_cast<std::uint32_t>(word >> 32), static_cast<std::uint32_t>(word));
    };
    if (look(t) != -expected || look(~t) != expected) return false;
  }
  return true;
}

// Threefry-2x32-20 by its definition: both words of one block.
void Block(const std::uint32_t* key, std::uint32_t x, std::uint32_t y, std::uint32_t* made) {
  constexpr int kRotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const std::uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  x += keys[0];
  y += keys[1];
  for (int round = 0; round < 20; ++round) {
    const int rotation = kRotations[round % 8];
    x += y;
    y = x ^ (y << rotation | y >> (32 - rotation));
    if (round % 4 == 3) {
      const std::uint32_t injection = round / 4 + 1;
      x += keys[injection % 3];
      y += keys[(injection + 1) % 3] + injection;
    }
  }
  made[0] = x;
  made[1] = y;
}

// Whether the words are the generator's, whose own are those that Salmon et al. publish (the digits of pi).
bool WordsRight() {
  constexpr std::uint32_t kKey[2] = {0x13198A2Eu, 0x03707344u};
  std::uint32_t made[2], high[kBlocks], low[kBlocks];
  Block(kKey, 0x243F6A88u, 0x85A308D3u, made);
  if (made[0] != 0xC4923A9Cu || made[1] != 0x483DF7A0u) return false;
  for (const std::uint32_t first : {0u, 12345u, 0xFFFFFFF0u}) {
    Words(kKey, first, high, low);
    for (int i = 0; i < kBlocks; ++i) {
      Block(kKey, 1, first + i, made);
      if (high[i] != made[0] || low[i] != made[1]) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace idrc

// 0 if all is well.
extern "C" int IdrcSelfTest() { return idrc::LooksRight() && idrc::WordsRight() ? 0 : 1; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcRoundedNormal, idrc::Integers,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::U16>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
