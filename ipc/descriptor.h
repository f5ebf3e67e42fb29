// A file descriptor that is closed with its owner.
#ifndef IPC_DESCRIPTOR_H_
#define IPC_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace deka::ipc {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(Descriptor&& other) noexcept : descriptor_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Descriptor() { Close(); }

  int get() const { return descriptor_; }
  bool valid() const { return descriptor_ >= 0; }
  int Release() { return std::exchange(descriptor_, -1); }
  void Close() {
    if (valid()) close(Release());
  }

 private:
  int descriptor_ = -1;
};

}  // namespace deka::ipc

#endif  // IPC_DESCRIPTOR_H_
