// The lines of a descriptor as messages of an attachment, each sent once there is room for it.
//
//   descriptor --> Read() --> SendRead() --> attachment --> Answered(), LineOf()
//
// A blank line is no message and is skipped. Lines are counted as an editor counts them, from 1;
// the attachment counts messages.
//
// Thread: Answered() and LineOf() any, as they are for the attachment's callbacks; all else one.
#ifndef SDK_DEKACTL_LINE_SENDER_H_
#define SDK_DEKACTL_LINE_SENDER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "sdk/dekactl/line_reader.h"

namespace deka::dekactl {

class LineSender {
 public:
  // Sent and not answered, at most: so few that Attachment::Send never waits, in which nobody would
  // hear Ctrl-C.
  struct Options {
    size_t messages_max = Attachment::kRequestsMax / 2;
    size_t bytes_max = Attachment::kRequestsBytesMax / 2;
  };
  // Sends a message; answers its number: 1, 2, 3...
  using Send = std::function<absl::StatusOr<int64_t>(std::string_view message)>;

  explicit LineSender(int descriptor) : LineSender(descriptor, Options()) {}
  LineSender(int descriptor, Options options) : reader_(descriptor), options_(options) {}

  // True once all that was read has been sent.
  bool WantsInput() const { return sent_all_ && !reader_.at_end(); }
  // The descriptor has ended, and all that was read has been sent.
  bool done() const { return sent_all_ && reader_.at_end(); }

  // Reads once, which may wait.
  absl::Status Read();
  // Sends what has been read as far as there is room. Fails as `send` does; line() is the line
  // that it refused, and the next call goes on behind it.
  absl::Status SendRead(const Send& send);
  // The last line that was looked at.
  int64_t line() const { return line_; }

  // All messages up to this one are answered.
  void Answered(int64_t through);
  // The line of a message that is not answered.
  int64_t LineOf(int64_t message) const;

  bool all_answered() const;
  // What has become of the lines if nothing more is sent or answered: "written up to line 37; lines
  // 38 to 42 may be written or not, no further ones are".
  std::string Account() const;

 private:
  struct Message {
    int64_t line;
    size_t bytes;
  };

  bool HasRoom() const;

  LineReader reader_;
  const Options options_;
  int64_t line_ = 0;
  bool sent_all_ = true;  // of what was read

  mutable ipc::Mutex mutex_;
  std::deque<Message> unanswered_ ABSL_GUARDED_BY(mutex_);
  size_t unanswered_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t through_ ABSL_GUARDED_BY(mutex_) = 0;       // the last message answered
  int64_t through_line_ ABSL_GUARDED_BY(mutex_) = 0;  // its line
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_LINE_SENDER_H_
