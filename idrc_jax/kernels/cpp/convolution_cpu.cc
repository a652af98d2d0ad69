// Convolutions and the gradients of their weights, for training: 3x3 and 1x1, of stride 1 and 2.

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "direct.h"
#include "image_groups.h"
#include "self_test.h"
#include "thread_pool.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

// Sums are made by shares of a batch, so that they do not depend on the threads: so many at most. By minimal filtering a
// share has about as many pixels as make passing over the sums worth it, and so many channels are summed at a time.
constexpr int kShares = 8, kSharePixels = 512, kPart = 64;
// Pixels of a group of images for which transforming weights pays.
constexpr int kFilteredPixels = kGroup * Winograd::kTile * Winograd::kTile;

// What is to be convolved: `count` images, whose copies get a border, with weights [size, size, in, out].
struct Problem {
  Shape in, out;
  int count, size, stride;

  bool Filtered() const {
    return size == 3 && stride == 1 && in.channels % kNarrow == 0 && Winograd::Fits(in);
  }
  std::size_t Weights() const { return static_cast<std::size_t>(size) * size * in.channels * out.channels; }
  std::ptrdiff_t Input() const { return static_cast<std::ptrdiff_t>(in.height) * in.width * in.channels; }
};

// What the arrays say: whether the kernel serves.
bool Read(ffi::Span<const std::int64_t> images, ffi::Span<const std::int64_t> weights,
          ffi::Span<const std::int64_t> results, std::int64_t stride, Problem* problem) {
  if (images.size() != 4 || weights.size() != 4 || results.size() != 4) return false;
  const auto shape = [](ffi::Span<const std::int64_t> size, int border) {
    return Shape{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3]), border};
  };
  *problem = {shape(images, 1), shape(results, 0), static_cast<int>(images[0]), static_cast<int>(weights[0]),
              static_cast<int>(stride)};
  const int size = problem->size, channels = problem->out.channels;
  const bool fits = problem->out.height == (problem->in.height + stride - 1) / stride &&
                    problem->out.width == (problem->in.width + stride - 1) / stride && weights[1] == size &&
                    weights[2] == images[3] && weights[3] == channels && results[0] == images[0];
  const bool some = problem->in.height > 0 && problem->in.width > 0 && channels > 0;
  return fits && some && (size == 1 || size == 3) && (stride == 1 || stride == 2) && channels % kNarrow == 0;
}

ffi::Error Refusal() {
  return ffi::Error::InvalidArgument("Expected a convolution that convolution_cpu.serves() accepts.");
}

// Calls run(size, stride) with constants.
template <class Run>
void WithConstants(const Problem& problem, const Run& run) {
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Three = std::integral_constant<int, 3>;
  if (problem.size == 3) {
    problem.stride == 1 ? run(Three(), One()) : run(Three(), Two());
  } else {
    problem.stride == 1 ? run(One(), One()) : run(One(), Two());
  }
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                   ffi::ResultBuffer<ffi::F32> result, std::int64_t stride) {
  Problem problem;
  if (!Read(images.dimensions(), weights.dimensions(), result->dimensions(), stride, &problem)) return Refusal();
  const Shape in = problem.in, out = problem.out;
  const bool filtered = problem.Filtered();
  const Layer layer{weights.typed_data(), nullptr, false, false};
  const int each = problem.count / std::max(static_cast<int>(pool.num_threads()), 1);
  const int least = filtered ? std::max(kFilteredPixels / (out.height * out.width), 1) : 1;
  const int group = std::clamp(each, least, kGroup);
  ForEachTask(pool, (problem.count + group - 1) / group, [&] {
    return [&, bordered = Bordered(in), scratch = Zeros(filtered ? Winograd::Scratch(in.channels, out.channels) : 0)](
               int task) mutable {
      const int first = task * group, count = std::min(group, problem.count - first);
      const float* copy = bordered.Copy(images.typed_data() + first * problem.Input(), count);
      float* to = result->typed_data() + first * out.Size();
      if (filtered) return Winograd::Run(layer, copy, in, count, out, nullptr, to, scratch.get());
      WithConstants(problem, [&](auto size, auto step) {
        for (int i = 0; i < count; ++i) {
          Convolve<size, step>(layer, copy + i * in.Size(), in, out, nullptr, to + i * out.Size());
        }
      });
    };
  });
  return ffi::Error::Success();
}

ffi::Error WeightGradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> from, ffi::Buffer<ffi::F32> gradient,
                          ffi::ResultBuffer<ffi::F32> result, std::int64_t stride) {
  Problem problem;
  if (!Read(from.dimensions(), result->dimensions(), gradient.dimensions(), stride, &problem)) return Refusal();
  const Shape in = problem.in, out = problem.out;
  const bool filtered = problem.Filtered();
  // Shares of the batch, and parts of the channels: all but the last are equally large.
  const std::ptrdiff_t pixels = static_cast<std::ptrdiff_t>(problem.count) * out.height * out.width;
  const int most = filtered ? static_cast<int>(std::clamp<std::ptrdiff_t>(pixels / kSharePixels, 1, kShares)) : kShares;
  const int images = std::max((problem.count + most - 1) / most, 1), shares = (problem.count + images - 1) / images;
  const int width = filtered ? std::min(out.channels, kPart) : out.channels;
  const int parts = (out.channels + width - 1) / width;
  // What is gathered at a share's end needs no zeros.
  const std::size_t numbers = std::max(shares, 1) * problem.Weights();
  Buffer sums = filtered && shares > 0 ? Uninitialised(numbers) : Zeros(numbers);
  ForEachTask(pool, shares * parts, [&] {
    return [&, bordered = Bordered(in), own = Uninitialised(filtered ? Winograd::kPositions * in.channels * width : 0),
            scratch = Uninitialised(filtered ? Winograd::GradientScratch(in.channels, width) : 0)](int task) mutable {
      const int share = task / parts, channel = task % parts * width, now = std::min(width, out.channels - channel);
      float* to = sums.get() + share * problem.Weights();
      const int end = std::min(problem.count, (share + 1) * images);
      if (filtered) std::fill_n(own.get(), Winograd::kPositions * in.channels * now, 0.0f);
      for (int first = share * images; first < end; first += kGroup) {
        const int count = std::min(kGroup, end - first);
        const float* copy = bordered.Copy(from.typed_data() + first * problem.Input(), count);
        const float* back = gradient.typed_data() + first * out.Size() + channel;
        if (filtered) {
          Winograd::Accumulate(copy, in, count, back, out, now, own.get(), scratch.get());
          continue;
        }
        WithConstants(problem, [&](auto kernel, auto step) {
          for (int i = 0; i < count; ++i) {
            AccumulateWeights<kernel, step>(copy + i * in.Size(), in, back + i * out.Size(), out, to);
          }
        });
      }
      if (filtered) Winograd::GatherWeights(own.get(), in.channels, now, out.channels, to + channel);
    };
  });
  for (int share = 1; share < shares; ++share) {
    for (std::size_t i = 0; i < problem.Weights(); ++i) sums[i] += sums[share * problem.Weights() + i];
  }
  std::copy_n(sums.get(), problem.Weights(), result->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcConvolution, idrc::Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcWeightGradient, idrc::WeightGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("stride"));
