#include "ipc/log.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "ipc/utf8.h"

namespace deka::ipc {
namespace {

bool IsOn(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

// Never destroyed: a channel may log while the process ends.
spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    auto* made =
        new spdlog::logger("deka", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern(kLogPattern);
    made->set_level(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

}  // namespace

bool FrameLogOn() {
  static const bool on = IsOn("DEKA_IPC_DEBUG");
  return on;
}

bool VerboseLogOn() {
  static const bool on = IsOn("DEKA_VERBOSE");
  return on;
}

void LogFrame(FrameDirection direction, std::string_view channel, std::string_view bytes,
              uint64_t size_bytes) {
  if (!FrameLogOn()) return;
  const std::string text = Escaped(bytes, kLoggedBytesMax);
  Logger().debug("{} {} {} bytes {}{}", direction == FrameDirection::kReceived ? "<-" : "->",
                 channel, size_bytes, text,
                 size_bytes > std::min(bytes.size(), kLoggedBytesMax) ? "..." : "");
}

void LogVerbose(std::string_view text) {
  if (VerboseLogOn()) Logger().debug("{}", text);
}

std::string Escaped(std::string_view bytes, size_t bytes_max) {
  bytes = Utf8Prefix(bytes, bytes_max);
  std::string text;
  while (!bytes.empty()) {
    const size_t size = Utf8CharacterSize(bytes);
    const std::string_view character = bytes.substr(0, std::max<size_t>(size, 1));
    if (character == "\\") {
      text += "\\\\";
    } else if (character == "\n") {
      text += "\\n";
    } else if (character == "\r") {
      text += "\\r";
    } else if (character == "\t") {
      text += "\\t";
    } else if (size == 0 || IsControl(character)) {
      for (const char byte : character) {
        text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
      }
    } else {
      text += character;
    }
    bytes.remove_prefix(character.size());
  }
  return text;
}

}  // namespace deka::ipc
