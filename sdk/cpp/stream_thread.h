// A thread that keeps one stream of the agent going: opens it, reads it, and opens the next when
// the connection was lost.
//
//   Start --> stream --+-- lost --> wait for the agent --> stream ...
//                      +-- everything shown, or an error of the agent's --> on_end, done
//
// Thread: any; the callbacks come on the thread that it owns.
#ifndef SDK_CPP_STREAM_THREAD_H_
#define SDK_CPP_STREAM_THREAD_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "grpcpp/client_context.h"
#include "ipc/mutex.h"
#include "sdk/cpp/connection.h"

namespace deka {

class StreamThread {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    // Runs one stream to its end and answers how it ended. Calls Standing() when it stands.
    virtual absl::Status Run(grpc::ClientContext& context) = 0;
    // How everything ended, if no further stream is needed after one that ended with `status`.
    virtual std::optional<absl::Status> Finished(const absl::Status& status) = 0;
    virtual void OnLost(const absl::Status& reason) = 0;
    // Not called if it was stopped.
    virtual void OnEnd(const absl::Status& status) = 0;
  };

  StreamThread(std::shared_ptr<Connection> connection, Stream& stream);

  // `owner` holds this and the stream, for as long as the thread runs.
  void Start(std::shared_ptr<void> owner);
  // Stops and frees the thread. After Start() it is called before the last reference of others to
  // the owner goes. From a callback, the thread ends by itself when that returns.
  void Close();

  // Waits until the first stream stands: OK, how it ended before, or DEADLINE_EXCEEDED.
  absl::Status AwaitStanding(Connection::Clock::time_point deadline);
  // From Stream::Run.
  void Standing();

  // Ends the stream. No callback runs when it returns, or, called from a callback, none follows.
  void Stop();
  // Until it has ended: how.
  absl::Status Wait();

  const std::atomic<bool>& stopped() const { return stopped_; }
  // True inside of callbacks.
  bool OnOwnThread() const { return own_thread_ == std::this_thread::get_id(); }

 private:
  void Run();
  absl::Status RunStreams();
  const std::shared_ptr<Connection> connection_;
  Stream& stream_;
  std::atomic<bool> stopped_{false};
  std::thread thread_;
  std::atomic<std::thread::id> own_thread_;

  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  bool standing_ ABSL_GUARDED_BY(mutex_) = false;  // it stood once
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;  // of the running stream
};

}  // namespace deka

#endif  // SDK_CPP_STREAM_THREAD_H_
