#include "ipc/default_address.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

namespace deka::ipc {
namespace {

std::string WithoutRuntimeDirectory() {
  return geteuid() == 0 ? "unix:/run/deka/agent.sock"
                        : "unix:/tmp/deka-" + std::to_string(geteuid()) + "/agent.sock";
}

TEST(DefaultAddress, IsInTheRuntimeDirectory) {
  setenv("XDG_RUNTIME_DIR", "/run/user/1000", 1);
  EXPECT_EQ(DefaultAddress(), "unix:/run/user/1000/deka/agent.sock");
}

TEST(DefaultAddress, IsTheUsersOwnWithoutOne) {
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(DefaultAddress(), WithoutRuntimeDirectory());
}

TEST(DefaultAddress, IgnoresARuntimeDirectoryThatIsNoAbsolutePath) {
  for (const char* path : {"", "run/user/1000", "."}) {
    setenv("XDG_RUNTIME_DIR", path, 1);
    EXPECT_EQ(DefaultAddress(), WithoutRuntimeDirectory()) << "'" << path << "'";
  }
}

}  // namespace
}  // namespace deka::ipc
