#include <unistd.h>

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "fmt/format.h"
#include "ipc/mutex.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/line_reader.h"
#include "sdk/dekactl/stream.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string child;
  bool json = false;
};

// What was sent and is not answered yet. Thread: any.
class Unanswered {
 public:
  // One more does not make Attachment::Send wait, in which nobody would hear Ctrl-C.
  bool HasRoom() const {
    ipc::MutexLock lock(mutex_);
    return sizes_.size() < Attachment::kRequestsMax / 2 &&
           bytes_ < Attachment::kRequestsBytesMax / 2;
  }

  void Add(int64_t number, size_t bytes) {
    ipc::MutexLock lock(mutex_);
    if (number > through_) {
      sizes_.emplace_back(number, bytes);
      bytes_ += bytes;
    }
  }

  bool empty() const {
    ipc::MutexLock lock(mutex_);
    return sizes_.empty();
  }

  void AnsweredThrough(int64_t number) {
    ipc::MutexLock lock(mutex_);
    through_ = number;
    while (!sizes_.empty() && sizes_.front().first <= through_) {
      bytes_ -= sizes_.front().second;
      sizes_.pop_front();
    }
  }

 private:
  mutable ipc::Mutex mutex_;
  std::deque<std::pair<int64_t, size_t>> sizes_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t through_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Sends the lines that have been read, as far as there is room.
absl::Status SendLines(LineReader& reader, Attachment& attachment, Unanswered& unanswered) {
  while (unanswered.HasRoom()) {
    const std::optional<std::string> line = reader.Next();
    if (!line.has_value()) {
      break;
    }
    if (line->empty()) {
      continue;
    }
    const absl::StatusOr<int64_t> number = attachment.Send(*line);
    if (!number.ok()) {
      return number.status();
    }
    unanswered.Add(*number, line->size());
  }
  return absl::OkStatus();
}

int Attach(const Options& options, Context& context) {
  Waiter waiter;
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  Stream stream(context, waiter, options.json);
  Unanswered unanswered;
  std::atomic<bool> refused = false;
  absl::StatusOr<Attachment> attachment = client->Attach(
      options.child, {.observation = v1::Observation(),
                      .observer = stream.Observer(),
                      .on_ack =
                          [&](int64_t through) {
                            unanswered.AnsweredThrough(through);
                            waiter.Wake();
                          },
                      .on_failed =
                          [&](int64_t number, const absl::Status& status) {
                            refused = true;
                            context.Fail(status, fmt::format("message {}: ", number));
                          }});
  if (!attachment.ok()) {
    return context.Fail(attachment.status());
  }
  context.Hint("attached; each line is sent, Ctrl-D ends it");

  LineReader reader(STDIN_FILENO);
  absl::Status status;
  bool finished = false;
  while (status.ok() && !stream.end().has_value()) {
    // What the child has written is shown to its last event; nothing can be sent any more.
    if (!finished && (reader.at_end() || stream.closed())) {
      attachment->Finish();
      finished = true;
    }
    const Waiter::Event event = waiter.Wait(!finished && unanswered.HasRoom());
    if (event == Waiter::Event::kInterrupted || event == Waiter::Event::kReaderGone ||
        context.out.error() != 0) {
      break;
    }
    if (event == Waiter::Event::kInput) {
      status = reader.Read();
    }
    if (status.ok() && !finished) {
      status = SendLines(reader, *attachment, unanswered);
    }
  }
  attachment->Stop();
  context.err.Status("");
  // Behind the child's last event and the last answer there is nothing that an end could have cut.
  const bool complete = stream.closed() && unanswered.empty();
  if (const std::optional<Stream::End> end = stream.end();
      end.has_value() && !end->status.ok() && !complete) {
    status = end->status;
  }
  if (!status.ok()) {
    return context.Fail(status);
  }
  const int written = context.Written();
  return written != kComplete ? written : refused ? kError : stream.missed() ? kMissed : kComplete;
}

}  // namespace

void AddAttach(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "attach",
      "Holds a conversation with a child: shows its events from now on, sends each line of "
      "standard "
      "input to it.\n"
      "Ends with the input, with the child, or with Ctrl-C; the child goes on. Exits with 1 if a "
      "message was refused, with 4 if events were missed.");
  AddChildArgument(*command, options->child)->required();
  command->add_flag("--json", options->json, "Events as tail --json prints them");
  command->callback([options, &context] { context.exit_code = Attach(*options, context); });
}

}  // namespace deka::dekactl
