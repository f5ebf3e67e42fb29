#include "sdk/dekactl/line_sender.h"

#include <optional>

#include "fmt/format.h"

namespace deka::dekactl {
namespace {

bool IsBlank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace

absl::Status LineSender::Read() {
  sent_all_ = false;
  return reader_.Read();
}

absl::Status LineSender::SendRead(const Send& send) {
  while (HasRoom()) {
    const std::optional<std::string> line = reader_.Next();
    sent_all_ = !line.has_value();
    if (sent_all_) {
      break;
    }
    ++line_;
    if (IsBlank(*line)) {
      continue;
    }
    {
      // Before it is sent: its answer may come at once.
      ipc::MutexLock lock(mutex_);
      unanswered_.push_back({line_, line->size()});
      unanswered_bytes_ += line->size();
    }
    if (const absl::StatusOr<int64_t> number = send(*line); !number.ok()) {
      ipc::MutexLock lock(mutex_);
      unanswered_.pop_back();
      unanswered_bytes_ -= line->size();
      return number.status();
    }
  }
  return absl::OkStatus();
}

bool LineSender::HasRoom() const {
  ipc::MutexLock lock(mutex_);
  return unanswered_.size() < options_.messages_max && unanswered_bytes_ < options_.bytes_max;
}

void LineSender::Answered(int64_t through) {
  ipc::MutexLock lock(mutex_);
  for (; through_ < through && !unanswered_.empty(); ++through_) {
    through_line_ = unanswered_.front().line;
    unanswered_bytes_ -= unanswered_.front().bytes;
    unanswered_.pop_front();
  }
}

int64_t LineSender::LineOf(int64_t message) const {
  ipc::MutexLock lock(mutex_);
  const int64_t index = message - through_ - 1;
  return index >= 0 && index < static_cast<int64_t>(unanswered_.size())
             ? unanswered_[static_cast<size_t>(index)].line
             : 0;
}

bool LineSender::all_answered() const {
  ipc::MutexLock lock(mutex_);
  return unanswered_.empty();
}

std::string LineSender::Account() const {
  ipc::MutexLock lock(mutex_);
  const std::string written =
      through_line_ == 0 ? "" : fmt::format("written up to line {}", through_line_);
  if (unanswered_.empty()) {
    return written.empty() ? "no line was sent" : written + " and no further";
  }
  const int64_t first = unanswered_.front().line;
  const int64_t last = unanswered_.back().line;
  return fmt::format(
      "{}{}line{} may be written or not, no further ones are", written, written.empty() ? "" : "; ",
      first == last ? fmt::format(" {}", first) : fmt::format("s {} to {}", first, last));
}

}  // namespace deka::dekactl
