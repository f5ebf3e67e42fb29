#include "ipc/default_address.h"

#include <unistd.h>

#include <cstdlib>

namespace deka::ipc {

std::string DefaultAddress() {
  const char* runtime = getenv("XDG_RUNTIME_DIR");
  // The XDG specification lets a relative path be ignored.
  if (runtime != nullptr && runtime[0] == '/') {
    return "unix:" + std::string(runtime) + "/deka/agent.sock";
  }
  const uid_t user = geteuid();
  if (user == 0) {
    return "unix:/run/deka/agent.sock";
  }
  return "unix:/tmp/deka-" + std::to_string(user) + "/agent.sock";
}

}  // namespace deka::ipc
