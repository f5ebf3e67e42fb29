#include "ipc/channel.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ipc/error.h"
#include "ipc/json.h"
#include "ipc/log.h"

namespace deka::ipc {
namespace {

// SCM_MAX_FD: the kernel passes no more at once.
constexpr size_t kDescriptorsMax = 253;

// How Node begins a frame that travels with a handle, whatever its size.
constexpr std::string_view kHandleFrameBegin = R"({"cmd":"NODE_HANDLE","type":")";

absl::Status CheckLimits(const Channel::Options& options, const StreamMemory& memory) {
  if (options.message_bytes_max == 0 || options.message_bytes_max > Channel::kMessageBytesCeiling) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("message_bytes_max is {}. Give a number from 1 to {}.",
                                 options.message_bytes_max, Channel::kMessageBytesCeiling));
  }
  if (options.queue_bytes_max < options.message_bytes_max) {
    return MakeError(Reason::kInvalidArgument,
                     fmt::format("queue_bytes_max is {}, too small for one message of "
                                 "message_bytes_max, {}. Raise it, or lower that.",
                                 options.queue_bytes_max, options.message_bytes_max));
  }
  if (options.queue_messages_max == 0) {
    return MakeError(Reason::kInvalidArgument, "queue_messages_max is 0. Give at least 1.");
  }
  if (!memory.Fits(options.memory_limits())) {
    return MakeError(Reason::kInvalidArgument,
                     "The channel's memory was made for smaller limits than the channel has. Make "
                     "it for these.");
  }
  return absl::OkStatus();
}

absl::Status NotWritten(std::string_view why) {
  return MakeError(Reason::kChannelClosed,
                   fmt::format("The message was not written in full: {}.", why));
}

}  // namespace

// What all channels of a loop share. A frame that wraps in a ring is made whole in `scratch`: it
// lives during one call to one listener only, and calls never nest.
struct Channel::Workspace {
  explicit Workspace(EventLoop&) {}

  std::string scratch;
  std::string note_scratch;
};

absl::StatusOr<std::unique_ptr<Channel>> Channel::Open(EventLoop& loop, int socket,
                                                       StreamMemory& memory, Options options,
                                                       Listener& listener) {
  if (absl::Status status = CheckLimits(options, memory); !status.ok()) return status;
  std::unique_ptr<Channel> channel(
      new Channel(loop, socket, memory, std::move(options), listener, loop.Shared<Workspace>()));
  if (const int error = channel->watch_->error(); error != 0) {
    channel->socket_ = -1;
    return MakeError(
        Reason::kInvalidArgument,
        fmt::format("Descriptor {} cannot be watched: {}. Give a connected Unix stream socket.",
                    socket, std::strerror(error)));
  }
  if (!channel->outbox_.empty() || !channel->inbox_.empty()) channel->turn_.Schedule();
  channel->UpdateWatch();
  return channel;
}

Channel::Channel(EventLoop& loop, int socket, StreamMemory& memory, Options options,
                 Listener& listener, Workspace& workspace)
    : listener_(listener),
      options_(std::move(options)),
      log_frames_(FrameLogOn()),
      workspace_(workspace),
      memory_(memory),
      inbox_(memory),
      outbox_(memory),
      codec_(options_.dialect, options_.message_bytes_max, options_.json_depth_max),
      framer_({.line_bytes_max = options_.message_bytes_max + kEnvelopeBytesMax},
              inbox_.FramerState()),
      found_bytes_end_(inbox_.PositionOf(inbox_.end())),
      socket_(socket),
      turn_(loop, [this] { OnTurnEnd(); }),
      limit_(loop),
      idle_(loop, [this] { memory_.GiveBackPages(inbox_.empty(), outbox_.empty()); }) {
  watch_.emplace(loop, socket, [this](int events) { OnReady(events); });
  for (size_t i = 0; i < outbox_.sends(); ++i) {
    if (outbox_.Get(i).state == Outbox::Send::State::kOwn) ++nacks_queued_;
  }
}

Channel::~Channel() {
  watch_.reset();
  if (socket_ >= 0) close(socket_);
}

absl::StatusOr<Channel::Accepted> Channel::Send(std::string_view json, uint64_t tag,
                                                std::string_view note) {
  if (state_ != State::kOpen || write_ended_) {
    return MakeError(Reason::kChannelClosed,
                     "The channel is closed: nothing can be sent to this peer any more.");
  }
  if (absl::Status status = codec_.Check(json); !status.ok()) return status;
  const FrameParts frame = codec_.Encode(json);
  const bool over_bytes = outbox_.bytes() + frame.size() > options_.queue_bytes_max;
  if (!outbox_.empty() && (over_bytes || outbox_.sends() >= options_.queue_messages_max)) {
    return MakeError(
        Reason::kQueueFull,
        fmt::format("The queue is full: {} messages of {} bytes wait for the peer, which reads too "
                    "slowly, and {} more bytes do not fit the limit of {} messages or {} bytes. "
                    "Send again when some are written, or raise {}.",
                    outbox_.sends(), outbox_.bytes(), frame.size(), options_.queue_messages_max,
                    options_.queue_bytes_max,
                    over_bytes ? "queue_bytes_max" : "queue_messages_max"),
        {{"limit", over_bytes ? fmt::format("{}", options_.queue_bytes_max)
                              : fmt::format("{}", options_.queue_messages_max)}});
  }
  if (!outbox_.HasRoom(frame.size())) {
    return MakeError(Reason::kQueueFull,
                     "The queue holds what is being told as written. Send after this turn.");
  }

  const Outbox::Value value = outbox_.Stage(frame);
  BreaksToSpaces(value.first);
  BreaksToSpaces(value.second);
  outbox_.Commit(tag, Outbox::Send::State::kQueued, note);
  idle_.Use();
  if (!write_blocked_) turn_.Schedule();
  if (!referenced_) UpdateWatch();
  if (outbox_.bytes() < kSendBufferLow) return Accepted::kAccepted;
  told_high_ = true;
  return Accepted::kAcceptedHigh;
}

bool Channel::Cancel(uint64_t tag) {
  const bool queue_ends = write_ended_ || drop_queue_ || state_ == State::kClosed;
  if (queue_ends || !outbox_.Cancel(tag)) return false;
  turn_.Schedule();  // OnDrain may be due
  return true;
}

void Channel::Disconnect(Mode mode) {
  if (state_ == State::kClosed) return;
  if (mode == Mode::kClose) return Close();
  if (mode == Mode::kNow && !drop_queue_) {
    drop_queue_ = true;
    write_blocked_ = false;  // the rest of a frame that is begun is tried once more
    queue_reason_ = NotWritten("the channel was disconnected");
  }
  if (state_ == State::kOpen) StartFlush();
  turn_.Schedule();
}

void Channel::Close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  queue_reason_ = NotWritten("the channel was closed");
  CloseSocket();
  turn_.Schedule();
}

void Channel::PauseReading() {
  if (paused_) return;
  paused_ = true;
  if (state_ == State::kDraining) limit_.Cancel();
  UpdateWatch();
}

void Channel::ResumeReading() {
  if (!paused_) return;
  paused_ = false;
  if (state_ == State::kDraining) StartDrain();
  if (state_ != State::kClosed) turn_.Schedule();
}

void Channel::Reference(bool referenced) {
  referenced_ = referenced;
  UpdateWatch();
}

void Channel::OnReady(int events) {
  if (events & Watch::kWritable) {
    write_blocked_ = false;
    if (!Write()) return;
  }
  if ((events & Watch::kReadable) && !Read()) return;
  (void)Advance();
}

void Channel::OnTurnEnd() {
  if (!Write() || !TellInbox()) return;
  (void)Advance();
}

// Goes to the next states as far as they are reached.
bool Channel::Advance() {
  if (told_all_ && state_ == State::kOpen) StartFlush();
  if (state_ == State::kFlushing && (outbox_.empty() || write_ended_)) StartDrain();
  if (state_ == State::kDraining && told_all_) state_ = State::kClosed;
  if (state_ == State::kClosed) return Finish();
  UpdateWatch();
  return true;
}

bool Channel::MayTell() const {
  return state_ != State::kClosed && !paused_ && nacks_queued_ < StreamMemory::kOwnSendsMax;
}

bool Channel::Read() {
  if (!MayTell() || read_ended_) return true;
  iovec parts[2];
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))];
  const std::span<iovec> free = inbox_.Free(parts);
  StreamMemory::Transfer& receive = memory_.control().receive;
  for (;;) {
    receive.Prepare(free, control);
    if (recvmmsg(socket_, &receive.header, 1, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, nullptr) == 1) break;
    // The peer died with unread input; what it wrote before is still to come.
    if (errno == EINTR || errno == ECONNRESET) continue;
    if (errno == EAGAIN) return true;
    Fail(MakeError(Reason::kChannelFailed,
                   fmt::format("Reading from the channel failed: {}.", std::strerror(errno))));
    return true;
  }
  TakeDescriptors(receive.header.msg_hdr);
  if (receive.header.msg_len == 0) read_ended_ = true;
  idle_.Use();
  return TellInbox();
}

// They are closed at once; that they came is told with the frame they belong to.
void Channel::TakeDescriptors(const msghdr& message) {
  size_t count = 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(const_cast<msghdr*>(&message), header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t bytes = header->cmsg_len - CMSG_LEN(0);
    for (size_t offset = 0; offset + sizeof(int) <= bytes; offset += sizeof(int)) {
      int descriptor;
      std::memcpy(&descriptor, CMSG_DATA(header) + offset, sizeof(int));
      close(descriptor);
      ++count;
    }
  }
  // Those that this process has no number left for are dropped by the kernel.
  if (count == 0 && (message.msg_flags & MSG_CTRUNC)) count = 1;
  if (count == 0) return;
  descriptors_.count += count;
  descriptors_.end = inbox_.end();
}

// Tells what was read, as far as the listener wants it.
bool Channel::TellInbox() {
  bool told = false;
  while (MayTell()) {
    const Frame frame = framer_.Next(inbox_.view());
    if (frame.kind == Frame::Kind::kNeedMore) break;
    told = true;
    if (!TellFrame(frame)) return false;
  }
  if (read_ended_ && !told_all_ && MayTell()) {
    told_all_ = true;
    const Frame rest = framer_.Finish(inbox_.view());
    told = told || rest.kind != Frame::Kind::kNeedMore || descriptors_.count > 0;
    if (!TellEnd(rest)) return false;
  }
  if (told && !tell_([this] { listener_.OnReadEnd(); })) return false;
  inbox_.Store(framer_);
  if (const uint64_t growth = inbox_.Restart(); growth != 0) {
    LineFramer::State state = framer_.state();
    state.begin += growth;
    state.scanned += growth;
    framer_ = LineFramer({.line_bytes_max = options_.message_bytes_max + kEnvelopeBytesMax}, state);
    descriptors_.end += growth;
  }
  return true;
}

bool Channel::TellFrame(const Frame& frame) {
  const uint64_t size_bytes = frame.end - frame.begin;
  if (frame.kind == Frame::Kind::kTooLong) {
    const std::string_view bytes = framer_.first_bytes();
    if (log_frames_) {
      LogFrame(FrameDirection::kReceived, options_.debug_name, bytes, size_bytes);
    }
    if (!TellTooLong(frame)) return false;
  } else {
    const std::string_view line = inbox_.Contiguous(frame.begin, frame.end, workspace_.scratch);
    if (log_frames_) {
      LogFrame(FrameDirection::kReceived, options_.debug_name, line, size_bytes);
    }
    const absl::StatusOr<Line> decoded = codec_.Decode(line);
    if (!decoded.ok()) {
      if (ReasonOf(decoded.status()) == Reason::kMessageTooLarge) NackIfHandle(line, frame.begin);
      if (!TellBad(decoded.status(), line, size_bytes)) return false;
    } else if (decoded->handle_announced) {
      if (!TellHandle(line, frame.begin)) return false;
    } else {
      const Message message{.json = decoded->value, .internal = decoded->internal};
      if (!tell_([&] { listener_.OnMessage(message); })) return false;
    }
  }
  // A descriptor belongs to a frame that has a byte in the read that brought it.
  if (descriptors_.count > 0 && framer_.position() >= descriptors_.end) return TellUnannounced();
  return true;
}

bool Channel::TellTooLong(const Frame& frame) {
  const std::string_view first_bytes = framer_.first_bytes();
  const uint64_t size_bytes = frame.end - frame.begin;
  NackIfHandle(first_bytes, frame.begin);
  return TellBad(MakeError(Reason::kMessageTooLarge,
                           fmt::format("A frame of {} bytes was skipped: the limit is {} and {} "
                                       "for the envelope. Send less at once, or raise "
                                       "message_bytes_max.",
                                       size_bytes, options_.message_bytes_max, kEnvelopeBytesMax),
                           {{"limit", fmt::format("{}", options_.message_bytes_max)}}),
                 first_bytes, size_bytes);
}

bool Channel::TellHandle(std::string_view line, uint64_t frame_begin) {
  const bool arrived = std::exchange(descriptors_, {}).count > 0;
  QueueNack(frame_begin);
  return TellBad(
      MakeError(Reason::kHandleUnsupported,
                arrived ? "The peer sent a handle, which cannot travel here: it was closed, the "
                          "message with it dropped, and the peer told with NODE_HANDLE_NACK. Send "
                          "the message without it."
                        : "The peer announced a handle and sent none: the message was dropped, and "
                          "the peer told with NODE_HANDLE_NACK. Send the message without it."),
      line, line.size());
}

bool Channel::TellUnannounced() {
  const size_t count = std::exchange(descriptors_, {}).count;
  return TellBad(
      MakeError(
          Reason::kHandleUnsupported,
          fmt::format("The peer sent {} descriptors that no message announces. They were closed: "
                      "descriptors cannot travel here.",
                      count)),
      {}, 0);
}

// The stream has ended and all its whole frames are told; `frame` is what stood behind them.
bool Channel::TellEnd(const Frame& frame) {
  if (frame.kind != Frame::Kind::kNeedMore) {
    const uint64_t size_bytes = frame.end - frame.begin;
    end_reason_ = MakeError(
        Reason::kFrameTruncated,
        fmt::format(
            "The peer closed the channel in the middle of a frame: {} bytes were dropped. A "
            "message ends with a line break.",
            size_bytes));
    if (frame.kind == Frame::Kind::kTooLong) {
      if (!TellTooLong(frame)) return false;
    } else {
      const uint64_t shown = std::min<uint64_t>(size_bytes, kBadFrameBytes);
      if (!TellBad(end_reason_,
                   inbox_.Contiguous(frame.begin, frame.begin + shown, workspace_.scratch),
                   size_bytes)) {
        return false;
      }
    }
  }
  return descriptors_.count == 0 || TellUnannounced();
}

bool Channel::TellBad(const absl::Status& reason, std::string_view bytes, uint64_t size_bytes) {
  const BadFrame bad{
      .reason = reason, .bytes = bytes.substr(0, kBadFrameBytes), .size_bytes = size_bytes};
  return tell_([&] { listener_.OnBadFrame(bad); });
}

// Node sends nothing more after a frame with a handle until it is answered, though the frame was
// too long to be read.
void Channel::NackIfHandle(std::string_view first_bytes, uint64_t frame_begin) {
  if (!first_bytes.starts_with(kHandleFrameBegin)) return;
  descriptors_ = {};
  QueueNack(frame_begin);
}

void Channel::QueueNack(uint64_t frame_begin) {
  const std::string_view nack = HandleNack();
  // Of a frame that is told again the answer may be queued already.
  const uint64_t tag = inbox_.PositionOf(frame_begin);
  for (size_t i = 0; tag < found_bytes_end_ && i < outbox_.sends(); ++i) {
    const Outbox::Send& send = outbox_.Get(i);
    if (send.state == Outbox::Send::State::kOwn && send.tag == tag) return;
  }
  if (write_ended_ || drop_queue_ || state_ == State::kDraining || state_ == State::kClosed ||
      !outbox_.HasRoom(nack.size())) {
    return;
  }
  outbox_.Stage({.prefix = {}, .value = nack, .suffix = {}});
  outbox_.Commit(tag, Outbox::Send::State::kOwn);
  ++nacks_queued_;
  if (!write_blocked_) turn_.Schedule();
}

bool Channel::Write() {
  // What another process has written of this memory's frames, and was killed before it told so.
  if (!TellWritten()) return false;
  StreamMemory::Transfer& send = memory_.control().send;
  while (state_ != State::kClosed && !write_ended_ && !write_blocked_) {
    iovec parts[2];
    const std::span<iovec> next = outbox_.Next(parts, drop_queue_);
    if (next.empty()) {
      outbox_.Store();  // cancelled ones may have been skipped
      break;
    }
    size_t wanted = 0;
    for (const iovec& part : next) wanted += part.iov_len;
    send.Prepare(next, {});
    if (sendmmsg(socket_, &send.header, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        write_blocked_ = true;
      } else if (errno == EPIPE || errno == ECONNRESET) {
        write_ended_ = true;
        queue_reason_ = NotWritten("the peer has closed its end of the channel");
      } else {
        Fail(MakeError(Reason::kChannelFailed,
                       fmt::format("Writing to the channel failed: {}.", std::strerror(errno))));
      }
      break;
    }
    idle_.Use();
    write_blocked_ = send.header.msg_len < wanted;
    if (!TellWritten()) return false;
  }
  if (drop_queue_) write_ended_ = true;
  if (write_ended_) return FailQueue();
  if (told_high_ && state_ == State::kOpen && outbox_.bytes() < kSendBufferLow) {
    told_high_ = false;
    return tell_([this] { listener_.OnDrain(); });
  }
  return true;
}

bool Channel::TellWritten() {
  const uint64_t sent = outbox_.sent();
  bool told = false;
  while (!outbox_.empty() && outbox_.front().end <= sent) {
    told = true;
    if (!TellFront()) return false;
  }
  if (told && !tell_([this] { listener_.OnWriteEnd(); })) return false;
  outbox_.Store();
  return true;
}

bool Channel::FailQueue() {
  if (outbox_.empty()) return true;
  while (!outbox_.empty()) {
    if (!TellFront()) return false;
  }
  if (!tell_([this] { listener_.OnWriteEnd(); })) return false;
  outbox_.Store();
  return true;
}

// Tells what became of the oldest frame of the queue, and takes it out.
bool Channel::TellFront() {
  const Outbox::Send send = outbox_.front();
  const uint64_t written =
      std::min(std::max(outbox_.sent(), send.begin()) - send.begin(), uint64_t{send.length});
  const bool whole = written == send.length;
  outbox_.PopFront();
  if (log_frames_ && whole) {
    LogFrame(FrameDirection::kSent, options_.debug_name,
             outbox_.Contiguous(send, 0, std::min<uint64_t>(send.length, kLoggedBytesMax),
                                workspace_.scratch),
             send.length);
  }
  if (send.state == Outbox::Send::State::kOwn) {
    if (nacks_queued_-- == StreamMemory::kOwnSendsMax) turn_.Schedule();  // reading goes on
  } else if (send.state == Outbox::Send::State::kQueued) {
    const FrameParts envelope = codec_.Encode({});
    const Sent sent{.tag = send.tag,
                    .json = outbox_.Contiguous(send, envelope.prefix.size(),
                                               send.length - envelope.size(), workspace_.scratch),
                    .note = outbox_.Note(send, workspace_.note_scratch),
                    .written_bytes = written,
                    .status = whole ? absl::OkStatus() : queue_reason_};
    return tell_([&] { listener_.OnSent(sent); });
  }
  return true;
}

void Channel::AddProgress(Progress& progress) const {
  progress.consumed = inbox_.PositionOf(framer_.position());
  progress.line_begin = inbox_.PositionOf(framer_.state().begin);
  progress.first = outbox_.first();
  progress.settled = outbox_.settled();
}

void Channel::ForEachQueued(
    absl::FunctionRef<void(uint64_t tag, std::string_view note)> queued) const {
  std::string scratch;
  for (size_t i = 0; i < outbox_.sends(); ++i) {
    const Outbox::Send& send = outbox_.Get(i);
    if (send.state == Outbox::Send::State::kQueued) queued(send.tag, outbox_.Note(send, scratch));
  }
}

void Channel::StartFlush() {
  state_ = State::kFlushing;
  limit_.Start(options_.flush_ms_max, [this] {
    queue_reason_ =
        NotWritten(fmt::format("the peer did not take it within the {} ms that a "
                               "disconnect waits",
                               options_.flush_ms_max.count()));
    drop_queue_ = true;
    write_blocked_ = false;
    OnTurnEnd();
  });
  turn_.Schedule();
}

void Channel::StartDrain() {
  if (state_ == State::kFlushing) shutdown(socket_, SHUT_WR);
  state_ = State::kDraining;
  write_ended_ = true;
  if (paused_) {
    limit_.Cancel();
    return;
  }
  limit_.Start(options_.drain_ms_max, [this] {
    state_ = State::kClosed;
    (void)Advance();
  });
}

void Channel::Fail(absl::Status reason) {
  state_ = State::kClosed;
  end_reason_ = reason;
  queue_reason_ = std::move(reason);
  CloseSocket();
}

void Channel::CloseSocket() {
  if (socket_ < 0) return;
  watch_.reset();
  // Ends the conversation though somebody else should hold a duplicate.
  shutdown(socket_, SHUT_RDWR);
  close(socket_);
  socket_ = -1;
}

bool Channel::Finish() {
  CloseSocket();
  limit_.Cancel();
  if (!FailQueue()) return false;
  turn_.Cancel();
  return tell_([this] { listener_.OnClosed(end_reason_); });
}

void Channel::UpdateWatch() {
  if (!watch_.has_value()) return;
  watch_->Want((MayTell() && !read_ended_ ? Watch::kReadable : 0) |
               (write_blocked_ && !write_ended_ ? Watch::kWritable : 0));
  watch_->Reference(referenced_ || !outbox_.empty());
}

}  // namespace deka::ipc
