// A child in C++: what worker.js is in Node.
//
//   {"ping":n}    -> {"pong":n}
//   {"echo":any}  -> {"echoed":any}
//   "your turn"   -> asks its parent the same: {"ping":n}, then {"echo":any}

#include <cstdio>
#include <string>
#include <string_view>

#include "ipc/json.h"
#include "sdk/child/process.h"

namespace {

constexpr size_t kDepthMax = 256;

void Say(deka::Process& parent, const std::string& json) {
  if (const auto sent = parent.Send(json); !sent.ok()) {
    std::fprintf(stderr, "%s was not sent: %s\n", json.c_str(), sent.status().ToString().c_str());
  }
}

void Answer(deka::Process& parent, std::string_view json) {
  deka::ipc::JsonMember members[] = {{.key = "ping"}, {.key = "echo"}};
  deka::ipc::CheckJson(json, kDepthMax, members);
  const auto& [ping, echo] = members;
  if (json == "\"your turn\"") {
    Say(parent, R"({"ping":2})");
    Say(parent, R"({"echo":["à",2,null]})");
  } else if (!ping.value.empty()) {
    Say(parent, "{\"pong\":" + std::string(ping.value) + "}");
  } else if (!echo.value.empty()) {
    Say(parent, "{\"echoed\":" + std::string(echo.value) + "}");
  } else {
    std::printf("my parent answered %s\n", std::string(json).c_str());
    std::fflush(stdout);
  }
}

}  // namespace

int main() {
  const auto process = deka::Process::Open({.on_message = Answer});
  if (!process.ok()) {
    std::fprintf(stderr, "%s\n", std::string(process.status().message()).c_str());
    return 1;
  }
  (*process)->Run();  // until the parent disconnects
}
