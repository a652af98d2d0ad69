// The layers of any network in inference, float32, images [N, H, W, C]: convolutions, matrix products, attention, pooling.
// Weights are packed beforehand (`network_cpu.py`); bias, shortcut and activation are part of the layer.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "attention.h"
#include "depthwise.h"
#include "gemm.h"
#include "thread_pool.h"
#include "winograd_any_width.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

struct Problem {
  Images in, out;
  Window window;
  Epilogue epilogue;
  const float* from;
  const float* weights;
  float* to;
};

ffi::Error Read(ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights, ffi::Buffer<ffi::F32> bias,
                ffi::Buffer<ffi::F32> shortcut, ffi::ResultBuffer<ffi::F32> result, ffi::Span<const std::int64_t> window,
                std::int64_t activation, Problem* problem) {
  const auto shape = [](ffi::Span<const std::int64_t> size) {
    return Images{static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2]),
                  static_cast<int>(size[3])};
  };
  const auto at = [&](int i) { return static_cast<int>(window[i]); };
  if (images.dimensions().size() != 4 || result->dimensions().size() != 4 || window.size() != 6) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and a window of six numbers.");
  }
  *problem = {shape(images.dimensions()), shape(result->dimensions()),
              {at(0), at(1), at(2), at(3), at(4), at(5)},
              {bias.element_count() ? bias.typed_data() : nullptr,
               shortcut.element_count() ? shortcut.typed_data() : nullptr, static_cast<Activation>(activation)},
              images.typed_data(), weights.typed_data(), result->typed_data()};
  const Images in = problem->in, out = problem->out;
  const Window& w = problem->window;
  const bool fits = out.count == in.count && w.stride_y > 0 && w.stride_x > 0 &&
                    out.height == (in.height + 2 * w.pad_y - w.height) / w.stride_y + 1 &&
                    out.width == (in.width + 2 * w.pad_x - w.width) / w.stride_x + 1 &&
                    (bias.element_count() == 0 || bias.element_count() == static_cast<std::size_t>(out.channels)) &&
                    (shortcut.element_count() == 0 || shortcut.element_count() == result->element_count());
  return fits ? ffi::Error::Success() : ffi::Error::InvalidArgument("Expected arrays of one layer, got other shapes.");
}

ffi::Error WrongWeights() {
  return ffi::Error::InvalidArgument("Expected weights that were packed for this layer, got another number of them.");
}

// Rows of a task, at most `largest`: whole tiles, dealt evenly, something for every thread.
int Block(ffi::ThreadPool& pool, int all, int largest) {
  const int tasks = std::max((all + largest - 1) / largest, static_cast<int>(pool.num_threads()));
  return std::max(Rows::Tiles((all + tasks - 1) / tasks), 1) * kTileRows;
}

ffi::Error Product(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                   ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> shortcut, ffi::ResultBuffer<ffi::F32> result,
                   ffi::Span<const std::int64_t> window, std::int64_t activation) {
  Problem p;
  if (ffi::Error error = Read(images, weights, bias, shortcut, result, window, activation, &p); error.failure()) {
    return error;
  }
  const int depth = p.window.height * p.window.width * p.in.channels;
  if (weights.element_count() != PackedSize(depth, p.out.channels)) return WrongWeights();
  const int all = p.out.count * p.out.height * p.out.width, block = Block(pool, all, kBlockRows);
  ForEachTask(pool, (all + block - 1) / block, [&] {
    return [&, memory = Uninitialised(Rows::Size(block, std::min(depth, kSlice)))](int task) {
      const int first = task * block, count = std::min(block, all - first);
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(first) * p.out.channels;
      Epilogue epilogue = p.epilogue;
      if (epilogue.shortcut) epilogue.shortcut += at;
      for (int k = 0; k < depth; k += kSlice) {
        const int now = std::min(kSlice, depth - k);
        Rows rows(memory.get(), now);
        GatherWindows(p.from, p.in, p.out, p.window, first, count, k, now, rows);
        MultiplySlice(rows, count, k, depth, p.weights, p.out.channels, epilogue, p.to + at);
      }
    };
  });
  return ffi::Error::Success();
}

template <class Filter>
void RunFiltered(ffi::ThreadPool& pool, const Problem& p) {
  using Run = WideWinograd<Filter>;
  const int all = Run::Tiles(p.out), block = Block(pool, all, Run::Block(p.in.channels));
  ForEachTask(pool, (all + block - 1) / block, [&] {
    return [&, scratch = Uninitialised(Run::Scratch(p.in.channels))](int task) {
      std::fill_n(scratch.get(), p.in.channels, 0.0f);
      const int first = task * block, count = std::min(block, all - first);
      Run::Run(p.from, p.in, p.weights, first, count, p.out, p.epilogue, p.to, scratch.get());
    };
  });
}

ffi::Error Filtered(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                    ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> shortcut, ffi::ResultBuffer<ffi::F32> result,
                    ffi::Span<const std::int64_t> window, std::int64_t activation) {
  Problem p;
  if (ffi::Error error = Read(images, weights, bias, shortcut, result, window, activation, &p); error.failure()) {
    return error;
  }
  const std::size_t matrix = PackedSize(p.in.channels, p.out.channels);
  const Window& w = p.window;
  const bool square = w.height == 3 && w.width == 3 && w.stride_y * w.stride_x == 1 && w.pad_y == 1 && w.pad_x == 1;
  const bool serves = square && p.in.channels % kPanel == 0 && p.out.channels % kPanel == 0;
  const bool two = p.in.height == 2 && p.in.width == 2;
  if (serves && weights.element_count() == WideWinograd<FourByFour>::kPositions * matrix) {
    RunFiltered<FourByFour>(pool, p);
  } else if (serves && two && weights.element_count() == WideWinograd<WholeTwoByTwo>::kPositions * matrix) {
    RunFiltered<WholeTwoByTwo>(pool, p);
  } else {
    return WrongWeights();
  }
  return ffi::Error::Success();
}

ffi::Error Apart(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                 ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> shortcut, ffi::ResultBuffer<ffi::F32> result,
                 ffi::Span<const std::int64_t> window, std::int64_t activation) {
  Problem p;
  if (ffi::Error error = Read(images, weights, bias, shortcut, result, window, activation, &p); error.failure()) {
    return error;
  }
  const std::size_t size = static_cast<std::size_t>(p.window.height) * p.window.width * p.in.channels;
  if (p.in.channels % kPanel != 0 || p.in.channels != p.out.channels || weights.element_count() != size) {
    return WrongWeights();
  }
  ForEachTask(pool, p.in.count, [&] {
    return [&, scratch = Zeros(Depthwise::Scratch(p.in, p.window))](int image) {
      Depthwise::Run(p.from, p.in, p.weights, p.window, image, p.out, p.epilogue, p.to, scratch.get());
    };
  });
  return ffi::Error::Success();
}

// The largest of each window's pixels that lie inside the image; what is no number wins.
void LargestRow(const float* from, Images in, const Window& window, int image, int y, Images out, float* to) {
  const int top = y * window.stride_y - window.pad_y;
  for (int x = 0; x < out.width; ++x) {
    const int left = x * window.stride_x - window.pad_x;
    float* result = to + out.At(image, y, x);
    std::fill_n(result, out.channels, -std::numeric_limits<float>::infinity());
    for (int line = std::max(top, 0); line < std::min(top + window.height, in.height); ++line) {
      for (int column = std::max(left, 0); column < std::min(left + window.width, in.width); ++column) {
        const float* pixel = from + in.At(image, line, column);
        int c = 0;
        for (; c + kLanes <= out.channels; c += kLanes) {
          const Vector value = Load(pixel + c), best = Load(result + c);
          Store(result + c, (value > best) | (value != value) ? value : best);
        }
        for (; c < out.channels; ++c) {
          if (pixel[c] > result[c] || pixel[c] != pixel[c]) result[c] = pixel[c];
        }
      }
    }
  }
}

ffi::Error Largest(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::ResultBuffer<ffi::F32> result,
                   ffi::Span<const std::int64_t> window) {
  const auto from = images.dimensions(), to = result->dimensions();
  if (from.size() != 4 || to.size() != 4 || window.size() != 6 || from[0] != to[0] || from[3] != to[3]) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and a window of six numbers.");
  }
  const auto at = [](auto numbers, int i) { return static_cast<int>(numbers[i]); };
  const Images in{at(from, 0), at(from, 1), at(from, 2), at(from, 3)};
  const Images out{at(to, 0), at(to, 1), at(to, 2), at(to, 3)};
  const Window moves{at(window, 0), at(window, 1), at(window, 2), at(window, 3), at(window, 4), at(window, 5)};
  ForEachTask(pool, out.count, [&] {
    return [&](int image) {
      for (int y = 0; y < out.height; ++y) {
        LargestRow(images.typed_data(), in, moves, image, y, out, result->typed_data());
      }
    };
  });
  return ffi::Error::Success();
}

ffi::Error Attend(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> queries, ffi::Buffer<ffi::F32> keys,
                  ffi::Buffer<ffi::F32> values, ffi::ResultBuffer<ffi::F32> result, float scale) {
  const auto heads = [](auto size) {
    return size.size() == 4 ? Heads{static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2]),
                                    static_cast<int>(size[3])}
                            : Heads{};
  };
  const Heads q = heads(queries.dimensions()), k = heads(keys.dimensions()), v = heads(values.dimensions());
  const Heads out = heads(result->dimensions());
  const auto beside = [&](Heads other) { return other.count == q.count && other.heads == q.heads; };
  if (!beside(k) || !beside(v) || !beside(out) || k.tokens < 1 || k.tokens != v.tokens || k.numbers != q.numbers ||
      out.tokens != q.tokens || out.numbers != v.numbers || !(scale > 0)) {
    return ffi::Error::InvalidArgument("Expected queries, keys and values [N, tokens, heads, numbers] of one layer.");
  }
  ForEachTask(pool, q.count * q.heads, [&] {
    return [&, scratch = Uninitialised(Attention::Scratch(k, v))](int task) {
      Attention::Run(queries.typed_data(), q, keys.typed_data(), k, values.typed_data(), v, scale, task / q.heads,
                     task % q.heads, out, result->typed_data(), scratch.get());
    };
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcAttention, idrc::Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcLargest, idrc::Largest,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<ffi::Span<const std::int64_t>>("window"));

#define IDRC_LAYER(symbol, function)                                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function,                        \
                                ffi::Ffi::Bind()                         \
                                    .Ctx<ffi::ThreadPool>()              \
                                    .Arg<ffi::Buffer<ffi::F32>>()        \
                                    .Arg<ffi::Buffer<ffi::F32>>()        \
                                    .Arg<ffi::Buffer<ffi::F32>>()        \
                                    .Arg<ffi::Buffer<ffi::F32>>()        \
                                    .Ret<ffi::Buffer<ffi::F32>>()        \
                                    .Attr<ffi::Span<const std::int64_t>>("window") \
                                    .Attr<std::int64_t>("activation"))

IDRC_LAYER(IdrcProduct, idrc::Product);
IDRC_LAYER(IdrcFiltered, idrc::Filtered);
IDRC_LAYER(IdrcApart, idrc::Apart);

// 0 if all is well: a product with odd numbers of everything agrees with its definition in float64.
extern "C" int IdrcSelfTest() {
  using namespace idrc;
  constexpr int kCount = kTileRows + 3, kDepth = kSlice + kPiece + 5, kColumns = kTilePanels * kPanel + 7;
  const Buffer left = Zeros(kCount * kDepth), right = Zeros(PackedSize(kDepth, kColumns));
  const Buffer made = Zeros(kCount * kColumns), memory = Zeros(Rows::Size(kCount, kSlice));
  unsigned random = 1;
  const auto draw = [&random] { return static_cast<float>((random = random * 1664525u + 1013904223u) >> 16) / 65536; };
  for (int i = 0; i < kCount * kDepth; ++i) left[i] = draw() - 0.5f;
  for (std::size_t i = 0; i < PackedSize(kDepth, kColumns); ++i) right[i] = draw() - 0.5f;
  for (int k = 0; k < kDepth; k += kSlice) {
    const int now = std::min(kSlice, kDepth - k);
    Rows rows(memory.get(), now);
    for (int r = 0; r < kCount; ++r) rows.Put(r, 0, left.get() + r * kDepth + k, now);
    MultiplySlice(rows, kCount, k, kDepth, right.get(), kColumns, {nullptr, nullptr, Activation::kNone}, made.get());
  }
  for (int r = 0; r < kCount; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      double sum = made[r * kColumns + c];
      for (int k = 0; k < kDepth; ++k) {
        sum -= double{left[r * kDepth + k]} * right[(c / kPanel * kDepth + k) * kPanel + c % kPanel];
      }
      if (!(std::abs(sum) < 1e-4)) return 1;  // also for what is no number
    }
  }
  return 0;
}
