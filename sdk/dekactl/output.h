// What dekactl says: results on standard output, everything else on standard error.
#ifndef SDK_DEKACTL_OUTPUT_H_
#define SDK_DEKACTL_OUTPUT_H_

#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "ipc/mutex.h"

namespace deka::dekactl {

// One of the two. Thread: any.
class Output {
 public:
  explicit Output(int descriptor);

  bool terminal() const { return terminal_; }
  // On a terminal, unless NO_COLOR is set or TERM is `dumb`.
  bool colored() const { return colored_; }
  int descriptor() const { return descriptor_; }

  // Writes `line` and a line break. After a failure nothing more is written.
  void Line(std::string_view line);
  // On a terminal that can take it away again: shows `line`, cut to the terminal's width, until the
  // next Line or Status. An empty one removes it.
  void Status(std::string_view line);

  // errno of the first write that failed, else 0. EPIPE: the reader has seen enough.
  int error() const;

 private:
  void Write(std::string_view text) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int descriptor_;
  const bool terminal_;
  const bool dumb_;  // it only knows how to write on
  const bool colored_;
  mutable ipc::Mutex mutex_;
  bool status_shown_ ABSL_GUARDED_BY(mutex_) = false;
  int error_ ABSL_GUARDED_BY(mutex_) = 0;
};

enum class Color { kNone, kDim, kBold, kRed, kGreen, kYellow, kBlue, kMagenta, kCyan };

// `text` in a colour if `colored`.
std::string Paint(bool colored, Color color, std::string_view text);

// `text` as one line that a terminal shows as it is, written as ipc::Escaped writes it, but for
// tabs, and for backslashes, which JSON is full of: those stay.
std::string Printable(std::string_view text);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_OUTPUT_H_
