// A cursor on the command line: AGENT/EPOCH/SEQUENCE, as in `--from after:build-7/1732526467/42`.
//
// No character of it means anything to a shell.
#ifndef SDK_DEKACTL_CURSOR_TEXT_H_
#define SDK_DEKACTL_CURSOR_TEXT_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "deka/bridge/v1/event.pb.h"

namespace deka::dekactl {

std::string CursorText(const bridge::v1::Cursor& cursor);

// INVALID_ARGUMENT if `text` is not what CursorText writes.
absl::StatusOr<bridge::v1::Cursor> ParseCursor(std::string_view text);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_CURSOR_TEXT_H_
