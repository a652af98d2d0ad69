// A residual network for small images in training: forward with batch statistics, and all gradients.
//
// What lies between two convolutions is done where their operands are loaded and their results stored: a convolution's
// input is normalised, joined with its shortcut and cut at 0 as it is copied to a buffer with a border, a few images at a
// time; the sums that make the batch statistics are taken as results are stored. So forward every activation is written
// once and read once by the next layer. Backward a layer's gradient, cut where the activation was 0, is stored once with
// the two sums that batch normalisation asks for, and its correction by them is made when the layer below loads it; the
// gradients of weights and of pixels are made from the same two buffers.
//
// The batch is cut into shares that do not depend on the threads, and sums are made share by share: so results are the
// same on any number of threads. Arrays are float32, NHWC; 16, 32 and 64 channels in three stages.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <optional>
#include <utility>
#include <vector>

#include "resnet_training/backward.h"
#include "resnet_training/forward.h"
#include "resnet_training/kept_activations.h"
#include "self_test.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

constexpr double kEpsilon = 1e-5;
constexpr float kMomentum = 0.9f;  // the weight of a running statistic's old value

// ---- What is done once a phase, with the sums of all shares in their order.

double SumOf(const double* sums, int shares, int stride, int at) {
  double sum = 0;
  for (int share = 0; share < shares; ++share) sum += sums[share * stride + at];
  return sum;
}

void Normalise(const Network& network, const Convolution& of, const double* sums, int stride) {
  const double pixels = static_cast<double>(network.count) * of.out.height * of.out.width;
  for (int c = 0; c < of.out.channels; ++c) {
    const double mean = SumOf(sums, network.Shares(), stride, c) / pixels;
    const double square = SumOf(sums, network.Shares(), stride, kLargest + c) / pixels;
    const double variance = std::max(square - mean * mean, 0.0);
    const double inverse = 1 / std::sqrt(variance + kEpsilon);
    of.mean[c] = static_cast<float>(mean);
    of.inverse[c] = static_cast<float>(inverse);
    of.factor[c] = static_cast<float>(of.scale[c] * inverse);
    of.slope[c] = static_cast<float>(variance);  // until the gradient's takes its place
  }
}

// `products`: which of the sums is that of the gradient times the result's difference from the mean.
void NormaliseGradient(const Network& network, const Convolution& of, const double* sums, int products, float* to_scale,
                       float* to_bias) {
  const double pixels = static_cast<double>(network.count) * of.out.height * of.out.width;
  constexpr int kStride = 3 * kLargest;
  for (int c = 0; c < of.out.channels; ++c) {
    const double sum = SumOf(sums, network.Shares(), kStride, c);
    const double inverse = of.inverse[c], product = SumOf(sums, network.Shares(), kStride, products * kLargest + c);
    of.slope[c] = static_cast<float>(-of.scale[c] * inverse * inverse * inverse * product / pixels);
    of.offset[c] = static_cast<float>(-of.scale[c] * inverse * sum / pixels);
    to_scale[c] = static_cast<float>(product * inverse);
    to_bias[c] = static_cast<float>(sum);
  }
}

void RunForward(ffi::ThreadPool& pool, Network& network, float* features) {
  constexpr int kStride = 4 * kLargest;
  std::vector<double> sums(static_cast<std::size_t>(kShares) * kStride);
  const std::vector<int> tasks(ForwardWorker::Phases(network), network.Shares());
  ForEachPhase(
      pool, tasks, [&] { return ForwardWorker(network, sums.data(), features); },
      [&](int phase) {
        if (phase == 0) return Normalise(network, network.convolutions[0], sums.data(), kStride);
        const std::size_t b = (phase - 1) / 2;
        if (b == network.blocks.size()) return;
        const Block& block = network.blocks[b];
        const int number = phase % 2 ? block.first : block.second;
        Normalise(network, network.convolutions[number], sums.data(), kStride);
        if (phase % 2 && block.projection >= 0) {
          Normalise(network, network.convolutions[block.projection], sums.data() + 2 * kLargest, kStride);
        }
      });
}

struct Gradients {
  std::vector<float*> weights, scales, biases;
  float* images = nullptr;
};

void RunBackward(ffi::ThreadPool& pool, Network& network, const float* to_features, const Gradients& gradients) {
  std::vector<double> sums(static_cast<std::size_t>(kShares) * 3 * kLargest);
  const auto normalise = [&](int number, int products) {
    NormaliseGradient(network, network.convolutions[number], sums.data(), products, gradients.scales[number],
                      gradients.biases[number]);
  };
  const int blocks = static_cast<int>(network.blocks.size());
  ForEachPhase(
      pool, BackwardWorker::Tasks(network),
      [&] { return BackwardWorker(network, sums.data(), to_features, gradients.weights, gradients.images); },
      [&](int phase) {
        const int b = blocks - 1 - (phase - 1) / 2;
        if (phase > 2 * blocks) return;
        if (phase % 2) return normalise(network.blocks[b].first, 1);
        const Unit& unit = phase == 0 ? network.units.back() : network.units[b];
        normalise(unit.main, 1);
        if (unit.projection >= 0) normalise(unit.projection, 2);
      });
}

// ---- The calls.

KeptPages& Memory() {
  static KeptPages* memory = new KeptPages;  // for ever: a call may run while the process ends
  return *memory;
}

constexpr int kOfConvolution = 5;  // arguments: weights, scale, bias, running mean and variance

ffi::Error Refusal() { return ffi::Error::InvalidArgument("Expected the arrays that resnet_training_cpu.py passes."); }
ffi::Error TooLittle() { return ffi::Error::Internal("Expected as much memory as was counted."); }

// The network of the arrays: images, their channels' mean and 1 / std, and those of every convolution.
std::optional<Network> Read(const Array& images, const Array& mean, const Array& inverse,
                            const ffi::RemainingArgs& arrays, std::int64_t blocks, bool projection) {
  const auto size = images.dimensions();
  if (size.size() != 4 || size[0] < 1 || blocks < 1) return std::nullopt;
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  Network network(static_cast<int>(size[0]), image, static_cast<int>(blocks), projection);
  const std::size_t channels = image.channels;
  if (mean.element_count() != channels || inverse.element_count() != channels) return std::nullopt;
  if (arrays.size() < kOfConvolution * network.convolutions.size()) return std::nullopt;
  network.pixels = images.typed_data();
  network.image_mean = mean.typed_data();
  network.image_inverse = inverse.typed_data();
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    Convolution& one = network.convolutions[i];
    for (int part = 0; part < kOfConvolution; ++part) {
      const auto array = arrays.get<Array>(kOfConvolution * i + part);
      const std::size_t expected = part ? one.out.channels : one.Weights();
      if (array.has_error() || array->element_count() != expected) return std::nullopt;
      if (part < 3) (part == 0 ? one.kernel : part == 1 ? one.scale : one.bias) = array->typed_data();
    }
  }
  network.Place(nullptr);
  return network;
}

ffi::Error Forward(ffi::ThreadPool pool, Array images, Array mean, Array inverse, ffi::RemainingArgs arrays,
                   Result features, ffi::ResultBuffer<ffi::U32> name, ffi::RemainingRets statistics,
                   std::int64_t blocks, bool projection, bool keep) {
  auto network = Read(images, mean, inverse, arrays, blocks, projection);
  if (!network || features->element_count() != static_cast<std::size_t>(network->count) * kLargest) return Refusal();
  Pages pages = Memory().Take(network->floats);
  network->Place(pages.get());
  if (network->floats > pages.floats()) return TooLittle();
  RunForward(pool, *network, features->typed_data());
  for (std::size_t i = 0; i < network->convolutions.size(); ++i) {
    const Convolution& one = network->convolutions[i];
    const auto old_mean = arrays.get<Array>(kOfConvolution * i + 3), old_variance = arrays.get<Array>(kOfConvolution * i + 4);
    auto new_mean = statistics.get<Array>(2 * i), new_variance = statistics.get<Array>(2 * i + 1);
    if (new_mean.has_error() || new_variance.has_error()) return Refusal();
    for (int c = 0; c < one.out.channels; ++c) {
      const auto blend = [](float old, float now) { return kMomentum * old + (1 - kMomentum) * now; };
      (*new_mean)->typed_data()[c] = blend(old_mean->typed_data()[c], one.mean[c]);
      (*new_variance)->typed_data()[c] = blend(old_variance->typed_data()[c], one.slope[c]);
    }
  }
  std::uint64_t kept = 0;
  if (keep) {
    kept = Memory().Keep(std::move(pages));
  } else {
    Memory().Release(std::move(pages));
  }
  std::memcpy(name->typed_data(), &kept, sizeof kept);
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, Array images, Array mean, Array inverse, Array to_features,
                    ffi::Buffer<ffi::U32> name, ffi::RemainingArgs arrays, ffi::RemainingRets results,
                    std::int64_t blocks, bool projection, bool to_images) {
  auto network = Read(images, mean, inverse, arrays, blocks, projection);
  if (!network || to_features.element_count() != static_cast<std::size_t>(network->count) * kLargest) return Refusal();
  Gradients gradients;
  const std::size_t convolutions = network->convolutions.size();
  for (std::size_t i = 0; i < 3 * convolutions + (to_images ? 1 : 0); ++i) {
    auto array = results.get<Array>(i);
    if (array.has_error()) return Refusal();
    float* data = (*array)->typed_data();
    if (i == 3 * convolutions) {
      gradients.images = data;
    } else {
      (i % 3 == 0 ? gradients.weights : i % 3 == 1 ? gradients.scales : gradients.biases).push_back(data);
    }
  }
  std::uint64_t kept;
  std::memcpy(&kept, name.typed_data(), sizeof kept);
  std::list<Pages> found;
  const bool kept_still = Memory().Find(kept, &found);
  if (!kept_still) found.push_back(Memory().Take(network->floats));
  network->Place(found.front().get());
  if (network->floats > found.front().floats()) return TooLittle();
  if (!kept_still) {
    // Too many other calls came between, or this is not the first for that name: the same is computed again.
    std::vector<float> features(static_cast<std::size_t>(network->count) * kLargest);
    RunForward(pool, *network, features.data());
  }
  RunBackward(pool, *network, to_features.typed_data(), gradients);
  Memory().Release(std::move(found.front()));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcTrainingForward, idrc::Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::U32>>()
                                  .RemainingRets()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("keep"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcTrainingBackward, idrc::Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("to_images"));
