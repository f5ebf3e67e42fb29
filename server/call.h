// Calls of a gRPC server as coroutines that read from top to bottom.
//
//   completion queue ------------> CallThread -> Call (one RPC) -> its coroutines, one at a time
//   other threads -> Call::Remote ----^
//
//   Task Echo(Call& call) {
//     grpc::ByteBuffer message;
//     while (co_await call.Read(message)) {
//       if (!co_await call.Write(message)) co_return;
//     }
//     co_await call.Finish(absl::OkStatus());
//   }
//
// Everything that a coroutine waits for is a condition: it is looked at after each event of its
// call (something read or written, the call's end, a time reached, news from another thread), and
// the coroutine goes on when it holds. So a call may wait for several things at once, and for what
// it has asked another thread for without hanging if the caller goes away.
//
// The life of a call:
//
//   wanted --> begun: its coroutine runs --> finished, ended, or cancelled --> gone, when its
//                                            coroutines have returned
//
// A coroutine of a call that is over gets false from what it waits for and returns: it is never
// destroyed while it waits. What it did not finish is cancelled when it returns.
//
// g++ 12 destroys the temporaries of a conditional expression or an initializer list twice if they
// stand in what is awaited: name them before.
//
// Thread: everything runs on the CallThread's thread but for what says otherwise.
#ifndef SERVER_CALL_H_
#define SERVER_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/mutex.h"
#include "server/status.h"

namespace deka::server {

class Call;
class CallService;
class CallThread;

using CallClock = std::chrono::steady_clock;

// A coroutine of a call. It begins when it is given to Call::Run, and frees itself when it returns.
class [[nodiscard]] Task {
 public:
  struct promise_type {
    Call* call = nullptr;

    Task get_return_object() {
      return Task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept;
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };

  Task(Task&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (coroutine_) coroutine_.destroy();
  }

 private:
  friend class Call;
  explicit Task(std::coroutine_handle<promise_type> coroutine) : coroutine_(coroutine) {}

  std::coroutine_handle<promise_type> coroutine_;
};

// What comes out of a completion queue.
class CompletionTag {
 public:
  virtual void Complete(bool ok) = 0;

 protected:
  ~CompletionTag() = default;
};

// What other threads have to tell the calls' thread. One alarm, armed once for all that gathers
// until it rings, is the wake-up.
class Mailbox final : public CompletionTag {
 public:
  using Letter = absl::AnyInvocable<void()>;

  // `queue` is there until Close().
  explicit Mailbox(grpc::CompletionQueue& queue) : queue_(queue) {}
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // Runs `letter` on the queue's thread, never inside the call. Those of one thread run in order.
  // Destroyed unrun, on the caller's thread, when the box is closed. Any thread.
  void Post(Letter letter);
  // The same, behind what has been put into the queue already, whatever thread calls.
  void PostBehind(Letter letter);

  // Runs what the queue's own thread has posted: to be called after each completion.
  void RunOwn();

  // Drops what was not run. Afterwards nothing is put into the queue any more. Any thread.
  void Close();

  void Complete(bool ok) override;

  // Before anything is posted: which thread serves the queue.
  void BelongTo(std::thread::id thread) { thread_ = thread; }

 private:
  grpc::CompletionQueue& queue_;
  std::thread::id thread_;
  std::vector<Letter> own_;  // posted by the queue's own thread

  ipc::Mutex mutex_;
  std::vector<Letter> letters_ ABSL_GUARDED_BY(mutex_);
  bool armed_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mutex_);
};

// The thread that runs all calls of a server.
class CallThread {
 public:
  struct Options {
    // A write that takes longer ends its call, with kStalled.
    std::chrono::milliseconds write_stalled_ms_max{10'000};
  };

  CallThread(std::unique_ptr<grpc::ServerCompletionQueue> queue, Options options);

  // The server has been shut down before. Returns when every call is gone.
  ~CallThread();

  CallThread(const CallThread&) = delete;
  CallThread& operator=(const CallThread&) = delete;

  // Looks at the conditions of every call. Any thread.
  void LookAtCalls();

  // Makes stopping() true for all calls, those to come too. Any thread.
  void StopCalls();

  // Waits until no call has begun and is not gone, at most until then. Any other thread.
  void WaitForCalls(CallClock::time_point deadline);

 private:
  friend class Call;
  friend class CallService;

  // One alarm for the times of all calls.
  class Clock final : public CompletionTag {
   public:
    explicit Clock(grpc::CompletionQueue& queue) : queue_(queue) {}

    // Looks at the call's conditions at `time`, unless that is Forget()ten. One time for a call.
    void Set(Call& call, CallClock::time_point time);
    void Forget(Call& call);
    void Stop();

    void Complete(bool ok) override;

   private:
    void SetAlarm();

    grpc::CompletionQueue& queue_;
    std::set<std::pair<CallClock::time_point, Call*>> times_;
    grpc::Alarm alarm_;
    std::optional<CallClock::time_point> alarm_at_;  // while it is set
    bool stopped_ = false;
  };

  void Run();

  const Options options_;
  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  // Shared with those who may have something to tell when the thread is gone.
  const std::shared_ptr<Mailbox> mailbox_;
  Clock clock_;
  std::list<Call*> calls_;  // that have begun
  bool stopping_ = false;

  ipc::Mutex mutex_;
  ipc::CondVar none_left_;
  size_t calls_left_ ABSL_GUARDED_BY(mutex_) = 0;   // those that wait to begin too
  size_t calls_begun_ ABSL_GUARDED_BY(mutex_) = 0;  // of them

  std::thread thread_;
};

// One RPC.
class Call {
 public:
  static constexpr CallClock::time_point kNever = CallClock::time_point::max();

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The caller has cancelled, its deadline has passed, its connection is lost, or End() was called:
  // nobody hears an answer.
  bool cancelled() const { return cancelled_; }

  // The server is stopping: a call that would not end by itself ends now.
  bool stopping() const { return thread_.stopping_; }

  // When the caller stops waiting; kNever if it does not.
  CallClock::time_point deadline() const { return deadline_; }

  // --- To be awaited. Of each kind one at a time. ---

  // Waits until `condition` holds.
  template <typename Condition>
  auto Until(Condition condition) {
    return ConditionAwaiter<Condition>(*this, std::move(condition), kNever);
  }

  // Waits until `condition` holds or it is `time`.
  template <typename Condition>
  auto Until(Condition condition, CallClock::time_point time) {
    return ConditionAwaiter<Condition>(*this, std::move(condition), time);
  }

  // The next message. False: there is none, or the call is over.
  auto Read(grpc::ByteBuffer& message) {
    read_.Begin();
    stream_.Read(&message, &read_);
    return OperationAwaiter(*this, read_, kNever);
  }

  // The one request of a call that is not a stream of them: kInvalidArgument if it is none.
  auto Receive(google::protobuf::Message& request) {
    read_.Begin();
    stream_.Read(&received_, &read_);
    return ReceiveAwaiter(*this, request);
  }

  // Tells the caller that its call stands, before there is anything to write. False: it is over.
  auto SendHeaders() {
    write_.Begin();
    stream_.SendInitialMetadata(&write_);
    return OperationAwaiter(*this, write_, StalledAt());
  }

  // True: the message has passed flow control. False: the call is over; if the caller has read
  // nothing for write_stalled_ms_max, this has ended it.
  auto Write(const grpc::ByteBuffer& message) {
    write_.Begin();
    stream_.Write(message, &write_);
    return OperationAwaiter(*this, write_, StalledAt());
  }

  // The last message, and OK.
  auto Answer(const grpc::ByteBuffer& message) {
    finished_ = true;
    write_.Begin();
    stream_.WriteAndFinish(message, grpc::WriteOptions(), grpc::Status::OK, &write_);
    return OperationAwaiter(*this, write_, StalledAt());
  }

  // The end of the call, with its details if it is an error.
  auto Finish(const absl::Status& status) {
    finished_ = true;
    write_.Begin();
    stream_.Finish(ToGrpcStatus(status), &write_);
    return OperationAwaiter(*this, write_, StalledAt());
  }

  // --- To be called. ---

  // Ends the call at once, whatever is under way: what waits to be read is lost. The caller hears
  // code and message, without details.
  void End(const absl::Status& status);

  // Runs another coroutine of this call.
  void Run(Task task);

  // The call, for other threads. Copies may outlive it.
  class Remote {
   public:
    // Runs `letter` on the calls' thread, then looks at the call's conditions. If the call is gone
    // it is destroyed unrun. Any thread.
    void Post(Mailbox::Letter letter) const;
    // The same, after other calls had their turn.
    void PostBehind(Mailbox::Letter letter) const;

   private:
    friend class Call;
    Mailbox::Letter ForCall(Mailbox::Letter letter) const;

    std::shared_ptr<Mailbox> mailbox_;
    std::shared_ptr<Call*> call_;  // null when it is gone; the calls' thread alone looks
  };
  Remote remote() const;

 private:
  friend class CallService;
  friend class CallThread;
  friend struct Task::promise_type;

  // Something that gRPC does for the call.
  class Operation final : public CompletionTag {
   public:
    explicit Operation(Call& call) : call_(call) {}

    void Begin() {
      pending_ = true;
      ++call_.operations_;
    }
    void Complete(bool ok) override;

    bool pending() const { return pending_; }
    bool ok() const { return ok_; }

   private:
    Call& call_;
    bool pending_ = false;
    bool ok_ = false;
  };

  // A coroutine that waits.
  class Waiter {
   public:
    Waiter(Call& call, CallClock::time_point time) : call_(call), time_(time) {}
    virtual bool Ready(CallClock::time_point now) = 0;

    void await_suspend(std::coroutine_handle<> coroutine) {
      coroutine_ = coroutine;
      call_.waiters_.push_back(this);
      call_.SetTime(time_);
    }

    virtual ~Waiter() = default;

   protected:
    Call& call_;
    CallClock::time_point time_;  // when to look even if nothing happens

   private:
    friend class Call;
    std::coroutine_handle<> coroutine_;
  };

  template <typename Condition>
  class ConditionAwaiter final : public Waiter {
   public:
    ConditionAwaiter(Call& call, Condition condition, CallClock::time_point time)
        : Waiter(call, time), condition_(std::move(condition)) {}

    bool Ready(CallClock::time_point now) override {
      return condition_() || (time_ != kNever && now >= time_);
    }
    bool await_ready() { return Ready(CallClock::now()); }
    void await_resume() {}

   private:
    Condition condition_;
  };

  class OperationAwaiter : public Waiter {
   public:
    OperationAwaiter(Call& call, Operation& operation, CallClock::time_point stalled_at)
        : Waiter(call, stalled_at), operation_(operation) {}

    bool Ready(CallClock::time_point now) override {
      if (operation_.pending() && time_ != kNever && now >= time_) {
        time_ = kNever;
        call_.EndStalled();
      }
      return !operation_.pending();
    }
    bool await_ready() { return false; }
    bool await_resume() { return operation_.ok(); }

   private:
    Operation& operation_;
  };

  class ReceiveAwaiter final : public OperationAwaiter {
   public:
    ReceiveAwaiter(Call& call, google::protobuf::Message& request)
        : OperationAwaiter(call, call.read_, kNever), request_(request) {}

    absl::Status await_resume() { return call_.Received(request_); }

   private:
    google::protobuf::Message& request_;
  };

  // Waits for the next call of a method.
  Call(CallThread& thread, CallService& service, size_t method);
  ~Call();

  CallClock::time_point StalledAt() const {
    return CallClock::now() + thread_.options_.write_stalled_ms_max;
  }
  void EndStalled();
  absl::Status Received(google::protobuf::Message& request);

  void Begin();
  // Looks at the conditions of those that wait; the call may be gone afterwards.
  void Look();
  void SetTime(CallClock::time_point time);
  void CoroutineReturned();
  void DeleteIfOver();

  CallThread& thread_;
  CallService& service_;
  const size_t method_;
  const std::shared_ptr<Call*> self_;
  std::list<Call*>::iterator place_;  // in thread_.calls_, once it has begun

  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer> stream_{&context_};
  grpc::ByteBuffer received_;
  CallClock::time_point deadline_ = kNever;
  bool begun_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
  CallClock::time_point time_ = kNever;  // in thread_.clock_

  Operation wanted_{*this};
  Operation over_{*this};
  Operation read_{*this};
  Operation write_{*this};

  size_t operations_ = 0;  // pending
  size_t coroutines_ = 0;
  std::vector<Waiter*> waiters_;
};

// What was asked of another thread, which answers by callback, once or never.
template <typename T>
class Reply {
 public:
  explicit Reply(const Call& call) : remote_(call.remote()) {}

  // To be given away: any thread may call it.
  absl::AnyInvocable<void(absl::StatusOr<T>)> Callback() {
    return [remote = remote_, slot = slot_](absl::StatusOr<T> reply) {
      remote.Post([slot, reply = std::move(reply)]() mutable { *slot = std::move(reply); });
    };
  }

  bool has_value() const { return slot_->has_value(); }
  absl::StatusOr<T>& operator*() { return **slot_; }
  absl::StatusOr<T>* operator->() { return &**slot_; }

 private:
  const Call::Remote remote_;
  const std::shared_ptr<std::optional<absl::StatusOr<T>>> slot_ =
      std::make_shared<std::optional<absl::StatusOr<T>>>();
};

// A service whose methods are coroutines. Requests and responses are bytes, whatever kind of method
// it is: a unary one reads one message and answers one. Outlives the server.
class CallService : public grpc::Service {
 public:
  using Method = absl::AnyInvocable<Task(Call&)>;

  // Before the service is registered. `path` is `/package.Service/Method`.
  void AddMethod(std::string path, Method method);

  // Takes calls from now on, on `thread`: once, when the server has started.
  void Start(CallThread& thread);

 private:
  friend class Call;
  struct MethodEntry {
    std::string path;  // gRPC keeps a pointer to it
    Method run;
  };
  void Request(size_t method, grpc::ServerContext& context,
               grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>& stream,
               grpc::ServerCompletionQueue& queue, CompletionTag* tag);

  std::list<MethodEntry> methods_;
  std::vector<MethodEntry*> by_index_;
};

// What a call ends with that stopping() ends.
absl::Status StoppingError();

// A message from its bytes: kInvalidArgument if it is none.
absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);

// The bytes of a message.
grpc::ByteBuffer Serialize(const google::protobuf::Message& message);

}  // namespace deka::server

#endif  // SERVER_CALL_H_
