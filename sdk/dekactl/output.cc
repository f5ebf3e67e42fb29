#include "sdk/dekactl/output.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "fmt/format.h"
#include "ipc/utf8.h"

namespace deka::dekactl {
namespace {

bool IsDumb() {
  const char* term = getenv("TERM");
  return term != nullptr && std::string_view(term) == "dumb";
}

bool WantsNoColor() {
  const char* no_color = getenv("NO_COLOR");
  return no_color != nullptr && *no_color != '\0';
}

// The first `count` characters.
std::string_view Beginning(std::string_view text, size_t count) {
  size_t bytes = 0;
  for (; count > 0 && bytes < text.size(); --count) {
    bytes += std::max<size_t>(ipc::Utf8CharacterSize(text.substr(bytes)), 1);
  }
  return text.substr(0, bytes);
}

}  // namespace

Output::Output(int descriptor)
    : descriptor_(descriptor),
      terminal_(isatty(descriptor) == 1),
      dumb_(IsDumb()),
      colored_(terminal_ && !dumb_ && !WantsNoColor()) {}

void Output::Line(std::string_view line) {
  ipc::MutexLock lock(mutex_);
  std::string text(status_shown_ ? "\r\x1b[K" : "");
  status_shown_ = false;
  text.append(line).push_back('\n');
  Write(text);
}

void Output::Status(std::string_view line) {
  ipc::MutexLock lock(mutex_);
  if (!terminal_ || dumb_ || (line.empty() && !status_shown_)) {
    return;
  }
  status_shown_ = !line.empty();
  // A line that went on in the next row could not be taken away.
  winsize size{};
  const bool known = ioctl(descriptor_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  Write(fmt::format("\r\x1b[K{}", Beginning(Printable(line), known ? size.ws_col - 1 : 79)));
}

int Output::error() const {
  ipc::MutexLock lock(mutex_);
  return error_;
}

void Output::Write(std::string_view text) {
  while (!text.empty() && error_ == 0) {
    const ssize_t written = write(descriptor_, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      error_ = errno;
    }
  }
}

std::string Paint(bool colored, Color color, std::string_view text) {
  constexpr int kCodes[] = {0, 2, 1, 31, 32, 33, 34, 35, 36};
  if (!colored || color == Color::kNone) {
    return std::string(text);
  }
  return fmt::format("\x1b[{}m{}\x1b[0m", kCodes[static_cast<int>(color)], text);
}

std::string Printable(std::string_view text) {
  std::string printable;
  printable.reserve(text.size());
  while (!text.empty()) {
    const size_t size = ipc::Utf8CharacterSize(text);
    const std::string_view character = text.substr(0, size == 0 ? 1 : size);
    if (character == "\n") {
      printable += "\\n";
    } else if (character == "\r") {
      printable += "\\r";
    } else if (size == 0 || (ipc::IsControl(character) && character != "\t")) {
      for (const char byte : character) {
        fmt::format_to(std::back_inserter(printable), "\\x{:02x}",
                       static_cast<unsigned char>(byte));
      }
    } else {
      printable += character;
    }
    text.remove_prefix(character.size());
  }
  return printable;
}

}  // namespace deka::dekactl
