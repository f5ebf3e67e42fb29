#include "sdk/dekactl/line_reader.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "fmt/format.h"

namespace deka::dekactl {

std::optional<std::string> LineReader::Next() {
  const size_t end = buffer_.find('\n', std::max(searched_, taken_));
  if (end == std::string::npos && (!at_end_ || taken_ == buffer_.size())) {
    searched_ = buffer_.size();
    return std::nullopt;
  }
  std::string line = buffer_.substr(taken_, end == std::string::npos ? end : end - taken_);
  taken_ = end == std::string::npos ? buffer_.size() : end + 1;
  return line;
}

absl::Status LineReader::Read() {
  constexpr size_t kChunkBytes = 64 << 10;
  buffer_.erase(0, taken_);
  searched_ -= std::min(searched_, taken_);
  taken_ = 0;
  if (buffer_.size() > line_bytes_max_) {
    return absl::ResourceExhaustedError(
        fmt::format("a line of standard input is longer than {} bytes; no agent takes such a "
                    "message",
                    line_bytes_max_));
  }
  const size_t size = buffer_.size();
  buffer_.resize(size + kChunkBytes);
  ssize_t count;
  do {
    count = read(descriptor_, buffer_.data() + size, kChunkBytes);
  } while (count < 0 && errno == EINTR);
  const int error = errno;
  buffer_.resize(size + static_cast<size_t>(std::max<ssize_t>(count, 0)));
  if (count < 0) {
    return absl::UnavailableError(fmt::format("cannot read standard input: {}", strerror(error)));
  }
  at_end_ = count == 0;
  return absl::OkStatus();
}

}  // namespace deka::dekactl
