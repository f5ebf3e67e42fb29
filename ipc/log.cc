#include "ipc/log.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "ipc/json.h"

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
    made->set_pattern("%H:%M:%S.%e %P %n %^%l%$ %v");
    made->set_level(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

// Length of the UTF-8 character that begins `bytes`; 0 if none does.
size_t CharacterBytes(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length > bytes.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(bytes[i]) & 0xc0) != 0x80) return 0;
  }
  return length;
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
    const size_t length = CharacterBytes(bytes);
    const auto first = static_cast<unsigned char>(bytes[0]);
    if (bytes[0] == '\\') {
      text += "\\\\";
    } else if (bytes[0] == '\n') {
      text += "\\n";
    } else if (bytes[0] == '\r') {
      text += "\\r";
    } else if (bytes[0] == '\t') {
      text += "\\t";
    } else if (length == 0 || first < 0x20 || first == 0x7f) {
      text += fmt::format("\\x{:02x}", first);
    } else {
      text.append(bytes.substr(0, length));
    }
    bytes.remove_prefix(std::max<size_t>(length, 1));
  }
  return text;
}

}  // namespace deka::ipc
