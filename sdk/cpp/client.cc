#include "sdk/cpp/client.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "fmt/format.h"
#include "ipc/mutex.h"
#include "sdk/cpp/attachment.h"
#include "sdk/cpp/connection.h"
#include "sdk/cpp/observation.h"
#include "sdk/cpp/request_id.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {
namespace {

using Lost = Connection::Lost;
using Stub = Connection::Stub;

constexpr char kAnyAgent[] = "agents/-";
constexpr int kPageSize = 1000;

// An upgrade: until the agent has refused it, or is gone; then until another one answers.
constexpr std::chrono::milliseconds kRefusalMsMax{40'000};
constexpr std::chrono::milliseconds kSuccessorMsMax{30'000};

bool IsExecutable(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0;
}

// The first executable of this name in PATH; empty if there is none.
std::string FindInPath(std::string_view program) {
  const char* variable = getenv("PATH");
  std::string_view path = variable == nullptr ? "/usr/local/bin:/usr/bin:/bin" : variable;
  for (;;) {
    const size_t end = path.find(':');
    const std::string_view directory = path.substr(0, end);
    // An empty entry means the working directory.
    std::string candidate = fmt::format("{}/{}", directory.empty() ? "." : directory, program);
    if (IsExecutable(candidate)) {
      return candidate;
    }
    if (end == std::string_view::npos) {
      return "";
    }
    path.remove_prefix(end + 1);
  }
}

absl::Status AgentStopping() {
  return ClientError(absl::StatusCode::kUnavailable, "AGENT_STOPPING",
                     "the agent has stopped; it tells nothing more of this child");
}

}  // namespace

absl::StatusOr<v1::ChildSpec> SpecOf(std::string_view program, std::vector<std::string> args) {
  std::error_code error;
  const std::string here = std::filesystem::current_path(error);
  if (error) {
    return ClientError(absl::StatusCode::kFailedPrecondition, "INVALID_ARGUMENT",
                       "the working directory is gone: " + error.message());
  }
  std::string path(program);
  if (program.find('/') == std::string_view::npos) {
    path = program.empty() ? "" : FindInPath(program);
    if (path.empty()) {
      return ClientError(absl::StatusCode::kNotFound, "PROGRAM_NOT_FOUND",
                         fmt::format("there is no program {} in PATH; write ./{} if it is in this "
                                     "directory",
                                     program, program));
    }
  }
  v1::ChildSpec spec;
  spec.set_program(path.starts_with('/') ? path : here + "/" + path);
  spec.mutable_args()->Assign(args.begin(), args.end());
  spec.set_cwd(here);
  return spec;
}

// --- Client ---

Client::Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

absl::StatusOr<Client> Client::Connect() { return Connect(Options()); }

absl::StatusOr<Client> Client::Connect(Options options) {
  absl::StatusOr<std::shared_ptr<Connection>> connection = Connection::Open(std::move(options));
  if (!connection.ok()) {
    return connection.status();
  }
  return Client(*std::move(connection));
}

const std::string& Client::target() const { return connection_->target(); }

absl::StatusOr<Child> Client::Fork(std::string_view program, std::vector<std::string> args) const {
  absl::StatusOr<v1::ChildSpec> spec = SpecOf(program, std::move(args));
  if (!spec.ok()) {
    return spec.status();
  }
  return Fork(*std::move(spec));
}

absl::StatusOr<Child> Client::Fork(v1::ChildSpec spec) const {
  v1::ForkChildRequest request;
  request.set_parent(kAnyAgent);
  *request.mutable_spec() = std::move(spec);
  request.set_request_id(NewRequestId());
  request.set_client(connection_->client());
  absl::StatusOr<v1::ForkChildResponse> response =
      connection_->Call(&Stub::ForkChild, std::move(request), Lost::kRepeat);
  if (!response.ok()) {
    return response.status();
  }
  return Child(connection_, std::move(*response->mutable_child()),
               std::move(*response->mutable_cursor()));
}

absl::StatusOr<v1::Agent> Client::GetAgent() const {
  v1::GetAgentRequest request;
  request.set_name(kAnyAgent);
  absl::StatusOr<v1::GetAgentResponse> response =
      connection_->Call(&Stub::GetAgent, std::move(request), Lost::kRead);
  if (!response.ok()) {
    return response.status();
  }
  return std::move(*response->mutable_agent());
}

absl::StatusOr<v1::Agent> Client::Upgrade(std::string_view binary) const {
  const absl::StatusOr<v1::Agent> before = GetAgent();
  if (!before.ok()) {
    return before.status();
  }
  v1::UpgradeAgentRequest request;
  request.set_name(kAnyAgent);
  request.set_binary(std::string(binary));
  absl::Status lost =
      connection_->Call(&Stub::UpgradeAgent, std::move(request), Lost::kOnce, kRefusalMsMax)
          .status();
  if (!lost.ok() && ErrorReason(lost) != "OUTCOME_UNKNOWN") {
    return lost;
  }
  const Connection::Clock::time_point deadline = Connection::Clock::now() + kSuccessorMsMax;
  Connection::Reconnection reconnection(
      *connection_, [deadline] { return Connection::Clock::now() >= deadline; });
  for (absl::Status there = reconnection.Wait(); there.ok();
       there = reconnection.WaitAfter(absl::UnavailableError("this is the agent from before"))) {
    absl::StatusOr<v1::Agent> agent = GetAgent();
    if (!agent.ok()) {
      return agent.status();
    }
    if (agent->incarnation() > before->incarnation() || agent->epoch() != before->epoch()) {
      return agent;
    }
  }
  return OutcomeUnknown(absl::DeadlineExceededError(fmt::format(
      "no new agent has answered within {} s", kSuccessorMsMax / std::chrono::seconds(1))));
}

absl::StatusOr<Child> Client::Find(std::string_view name) const {
  v1::GetChildRequest request;
  request.set_name(std::string(name));
  absl::StatusOr<v1::GetChildResponse> response =
      connection_->Call(&Stub::GetChild, std::move(request), Lost::kRead);
  if (!response.ok()) {
    return response.status();
  }
  return Child(connection_, std::move(*response->mutable_child()), std::nullopt);
}

absl::StatusOr<Client::Children> Client::List(v1::ChildFilter filter) const {
  v1::ListChildrenRequest request;
  request.set_parent(kAnyAgent);
  *request.mutable_filter() = std::move(filter);
  request.set_page_size(kPageSize);
  Children all;
  for (bool first = true;; first = false) {
    absl::StatusOr<v1::ListChildrenResponse> page =
        connection_->Call(&Stub::ListChildren, request, Lost::kRead);
    if (!page.ok()) {
      return page.status();
    }
    if (first) {
      all.cursor = page->cursor();
    }
    for (v1::Child& child : *page->mutable_children()) {
      all.children.push_back(std::move(child));
    }
    if (page->next_page_token().empty()) {
      return all;
    }
    request.set_page_token(page->next_page_token());
  }
}

absl::StatusOr<Observation> Client::Observe(v1::ObserveRequest request, Observer observer) const {
  return Observe(std::move(request), std::move(observer), Connection::Clock::time_point::max());
}

absl::StatusOr<Observation> Client::Observe(v1::ObserveRequest request, Observer observer,
                                            Connection::Clock::time_point deadline) const {
  absl::StatusOr<std::shared_ptr<Observation::Impl>> impl =
      Observation::Impl::Start(connection_, std::move(request), std::move(observer), deadline);
  if (!impl.ok()) {
    return impl.status();
  }
  return Observation(*std::move(impl));
}

absl::StatusOr<Attachment> Client::Attach(std::string_view child,
                                          Attachment::Options options) const {
  const absl::StatusOr<Child> found = Find(child);
  if (!found.ok()) {
    return found.status();
  }
  return found->Attach(std::move(options));
}

// --- Child ---

Child::Child(std::shared_ptr<Connection> connection, v1::Child description,
             std::optional<v1::Cursor> start)
    : connection_(std::move(connection)),
      description_(std::move(description)),
      known_sequence_(std::make_shared<std::atomic<int64_t>>(description_.last_sequence())),
      start_(std::move(start)) {}

Child::~Child() = default;
Child::Child(Child&&) noexcept = default;
Child& Child::operator=(Child&&) noexcept = default;

const std::string& Child::name() const { return description_.name(); }
std::string Child::id() const { return name().substr(name().rfind('/') + 1); }
int Child::pid() const { return description_.pid(); }
const v1::Child& Child::description() const { return description_; }

absl::StatusOr<v1::Child> Child::Describe() const {
  v1::GetChildRequest request;
  request.set_name(name());
  absl::StatusOr<v1::GetChildResponse> response =
      connection_->Call(&Stub::GetChild, std::move(request), Lost::kRead);
  if (!response.ok()) {
    return response.status();
  }
  return std::move(*response->mutable_child());
}

Attachment Child::Attach(Attachment::Options options) const {
  // The resource name: after a lost connection a display name may mean another child.
  return Attachment(
      Attachment::Impl::Start(connection_, name(), *known_sequence_, std::move(options)));
}

absl::StatusOr<bool> Child::connected() const {
  absl::StatusOr<v1::Child> child = Describe();
  if (!child.ok()) {
    return child.status();
  }
  return child->state() == v1::Child::STATE_CONNECTED;
}

absl::Status Child::Listen(Listener listener) {
  if (observation_.has_value()) {
    return absl::FailedPreconditionError("this child is listened to already; find it once more");
  }
  v1::ObserveRequest request;
  request.mutable_filter()->add_children(name());
  v1::Observation& observation = *request.mutable_observation();
  if (start_.has_value()) {
    *observation.mutable_start()->mutable_after() = *start_;
  }
  observation.set_direction(v1::DIRECTION_FROM_CHILD);
  observation.set_until_closed(true);
  for (const v1::EventKind kind : {v1::EVENT_KIND_MESSAGE, v1::EVENT_KIND_DISCONNECTED,
                                   v1::EVENT_KIND_EXITED, v1::EVENT_KIND_CLOSED}) {
    observation.add_kinds(kind);
  }
  Observer observer;
  observer.on_gap = listener.on_gap;
  observer.on_end = [on_error = listener.on_error](const absl::Status& status, const v1::Fin& fin) {
    if (!on_error) {
      return;
    }
    if (!status.ok()) {
      on_error(status);
    } else if (fin.reason() != v1::Fin::REASON_CLOSED) {
      on_error(AgentStopping());
    }
  };
  observer.on_event = [listener = std::move(listener)](const v1::Event& event) {
    if (event.has_from_child() && !event.from_child().internal() && listener.on_message) {
      listener.on_message(event.json());
    } else if (event.has_disconnected() && listener.on_disconnect) {
      listener.on_disconnect();
    } else if (event.has_exited() && listener.on_exit) {
      listener.on_exit(event.exited().status());
    } else if (event.has_closed() && listener.on_close) {
      listener.on_close();
    }
  };
  absl::StatusOr<Observation> started =
      Client(connection_).Observe(std::move(request), std::move(observer));
  if (!started.ok()) {
    return started.status();
  }
  observation_ = *std::move(started);
  return absl::OkStatus();
}

absl::StatusOr<v1::SendMessageResponse> Child::Send(std::string_view json) const {
  return Send(json, SendOptions());
}

absl::StatusOr<v1::SendMessageResponse> Child::Send(std::string_view json,
                                                    SendOptions options) const {
  v1::SendMessageRequest request;
  request.set_child(name());
  request.set_json(std::string(json));
  request.set_answer_when(options.answer_when);
  request.set_request_id(options.request_id.empty() ? NewRequestId()
                                                    : std::move(options.request_id));
  request.set_client(connection_->client());
  request.set_known_sequence(*known_sequence_);
  absl::StatusOr<v1::SendMessageResponse> response =
      connection_->Call(&Stub::SendMessage, std::move(request), Lost::kRepeat, options.timeout);
  if (response.ok()) {
    int64_t known = *known_sequence_;
    while (known < response->sequence() &&
           !known_sequence_->compare_exchange_weak(known, response->sequence())) {
    }
  }
  return response;
}

absl::Status Child::Disconnect(v1::DisconnectMode mode) const {
  v1::DisconnectRequest request;
  request.set_child(name());
  request.set_mode(mode);
  request.set_client(connection_->client());
  return connection_->Call(&Stub::Disconnect, std::move(request), Lost::kRepeat).status();
}

absl::Status Child::Kill(int signal) const {
  v1::SignalChildRequest request;
  request.set_child(name());
  request.set_signal(signal);
  request.set_client(connection_->client());
  return connection_->Call(&Stub::SignalChild, std::move(request), Lost::kOnce).status();
}

absl::StatusOr<v1::ExitStatus> Child::Wait() const {
  struct State {
    ipc::Mutex mutex;
    ipc::CondVar changed;
    std::optional<absl::StatusOr<v1::ExitStatus>> result ABSL_GUARDED_BY(mutex);

    void Set(absl::StatusOr<v1::ExitStatus> found) {
      ipc::MutexLock lock(mutex);
      if (!result.has_value()) {
        result = std::move(found);
        changed.NotifyAll();
      }
    }
  };
  State state;
  Observer observer;
  // The snapshot shows an end that was before, or came while the connection was lost.
  observer.on_child = [&state](const v1::Child& child) {
    if (child.has_exit_status()) {
      state.Set(child.exit_status());
    }
  };
  observer.on_event = [&state](const v1::Event& event) { state.Set(event.exited().status()); };
  observer.on_end = [&state](const absl::Status& status, const v1::Fin&) {
    state.Set(status.ok() ? AgentStopping() : status);
  };
  v1::ObserveRequest request;
  request.mutable_filter()->add_children(name());
  request.mutable_observation()->add_kinds(v1::EVENT_KIND_EXITED);
  const absl::StatusOr<Observation> observation =
      Client(connection_).Observe(std::move(request), std::move(observer));
  if (!observation.ok()) {
    return observation.status();
  }
  ipc::MutexLock lock(state.mutex);
  while (!state.result.has_value()) {
    state.changed.Wait(state.mutex);
  }
  return *std::move(state.result);
}

}  // namespace deka
