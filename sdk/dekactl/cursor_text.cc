#include "sdk/dekactl/cursor_text.h"

#include "fmt/format.h"
#include "sdk/dekactl/number.h"

namespace deka::dekactl {

using bridge::v1::Cursor;

std::string CursorText(const Cursor& cursor) {
  return fmt::format("{}/{}/{}", cursor.agent(), cursor.epoch(), cursor.sequence());
}

absl::StatusOr<Cursor> ParseCursor(std::string_view text) {
  const size_t second = text.rfind('/');
  const size_t first =
      second == std::string_view::npos || second == 0 ? second : text.rfind('/', second - 1);
  if (first == 0 || first == std::string_view::npos || second == 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} is no cursor; write AGENT/EPOCH/SEQUENCE, as tail prints it", text));
  }
  const auto epoch = ParseNumber(text.substr(first + 1, second - first - 1));
  const auto sequence = ParseNumber(text.substr(second + 1));
  if (!epoch.has_value() || !sequence.has_value()) {
    return absl::InvalidArgumentError(fmt::format(
        "{} is no cursor: epoch and sequence are numbers; write AGENT/EPOCH/SEQUENCE, as tail "
        "prints it",
        text));
  }
  Cursor cursor;
  cursor.set_agent(std::string(text.substr(0, first)));
  cursor.set_epoch(*epoch);
  cursor.set_sequence(*sequence);
  return cursor;
}

}  // namespace deka::dekactl
