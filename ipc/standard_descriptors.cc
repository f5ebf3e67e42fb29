#include "ipc/standard_descriptors.h"

#include <fcntl.h>
#include <unistd.h>

namespace deka::ipc {

void HoldStandardDescriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    const int flags = fcntl(descriptor, F_GETFD);
    // What was inherited is not close-on-exec. gRPC tries whether there are eventfds when it is
    // loaded, and leaves the one that it gets as 0 open.
    if (flags < 0 || (flags & FD_CLOEXEC) != 0) {
      const int held = open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
      if (held != descriptor) {
        dup2(held, descriptor);
        close(held);
      }
    }
  }
}

}  // namespace deka::ipc
