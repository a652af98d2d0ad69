// A residual network for small images that keeps its activations in a core's cache.
//
// A task takes a group of images through a whole stage before the next stage begins, so that the group's activations
// and a layer's weights stay in the level-2 cache. Activations are float32, NHWC, with a border of one zero pixel.
// Batch normalisation is folded into the weights; bias, shortcut and ReLU are applied before a value is stored, and
// with `half` it is rounded to bfloat16 as it is stored. Convolutions of 3x3 and stride 1 use minimal filtering where
// the size is a multiple of 4; the others are direct. A processor that has AMX takes a network in bfloat16 its own way. The plain-JAX twin is `models/folding.py`;
// `kernels/resnet_cpu.py` packs the weights.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "resnet/amx_worker.h"
#include "resnet/gradient.h"
#include "resnet/worker.h"
#include "self_test.h"
#include "thread_pool.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

ffi::Error InputGradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                         ffi::Buffer<ffi::F32> turned, ffi::Buffer<ffi::F32> to_logits,
                         ffi::ResultBuffer<ffi::F32> to_images, std::int64_t blocks, bool projection, bool half) {
  const auto size = images.dimensions();
  if (size.size() != 4 || to_logits.dimensions().size() != 2 || to_logits.dimensions()[0] != size[0] ||
      to_images->element_count() != images.element_count()) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and gradients [N, classes].");
  }
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  const Network network(weights.typed_data(), image, static_cast<int>(to_logits.dimensions()[1]),
                        static_cast<int>(blocks), projection, half);
  if (weights.element_count() != network.taken ||
      turned.element_count() != GradientWorker(network, turned.typed_data()).taken()) {
    return ffi::Error::InvalidArgument("Expected as many weights as the network has.");
  }
  const int count = static_cast<int>(size[0]);
  const float *from = images.typed_data(), *back = to_logits.typed_data();
  float* to = to_images->typed_data();
  ForEachTask(pool, (count + kTask - 1) / kTask, [&] {
    return [worker = std::make_unique<GradientWorker>(network, turned.typed_data()), &network, from, back, to,
            count](int task) mutable {
      const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(task) * kTask;
      worker->Run(from + first * network.Pixels(), std::min<int>(kTask, count - first), back + first * network.classes,
                  to + first * network.Pixels());
    };
  });
  return ffi::Error::Success();
}

// Classifies images by the way that is the network's; `deal` does tasks, by workers, as `ForEachTask` does.
template <class Deal>
void ClassifyAll(const Network& network, const float* from, int count, float* to, const Deal& deal) {
  const auto by = [&](const auto& make) {
    deal((count + kTask - 1) / kTask, [&] {
      return [worker = make(), &network, from, to, count](int task) mutable {
        const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(task) * kTask;
        worker.Run(from + first * network.Pixels(), std::min<int>(kTask, count - first), to + first * network.classes);
      };
    });
  };
#if defined(IDRC_HAS_AMX)
  if (AmxNetwork::Serves(network)) {
    const AmxNetwork layers(network);
    by([&] { return AmxWorker(layers); });
    return;
  }
#endif
  by([&] { return Worker(network); });
}

ffi::Error Classify(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                    ffi::ResultBuffer<ffi::F32> logits, std::int64_t blocks, bool projection, bool half) {
  const auto size = images.dimensions();
  if (size.size() != 4 || logits->dimensions().size() != 2 || logits->dimensions()[0] != size[0]) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and logits [N, classes].");
  }
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  const Network network(weights.typed_data(), image, static_cast<int>(logits->dimensions()[1]),
                        static_cast<int>(blocks), projection, half);
  if (weights.element_count() != network.taken) {
    return ffi::Error::InvalidArgument("Expected as many weights as the network has.");
  }
  ClassifyAll(network, images.typed_data(), static_cast<int>(size[0]), logits->typed_data(),
              [&](int tasks, const auto& make) { ForEachTask(pool, tasks, make); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcResnetGradient, idrc::InputGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("half"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcResnet, idrc::Classify,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("half"));
