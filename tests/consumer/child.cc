// A child that says everything back.

#include <cstdio>
#include <string>
#include <string_view>

#include "sdk/child/process.h"

int main() {
  deka::Process::Listeners listeners;
  listeners.on_message = [](deka::Process& parent, std::string_view json) {
    if (const auto sent = parent.Send(json); !sent.ok()) {
      std::fprintf(stderr, "%s\n", sent.status().ToString().c_str());
    }
  };
  const auto process = deka::Process::Open(listeners);
  if (!process.ok()) {
    std::fprintf(stderr, "%s\n", process.status().ToString().c_str());
    return 1;
  }
  (*process)->Run();  // until the parent disconnects
}
