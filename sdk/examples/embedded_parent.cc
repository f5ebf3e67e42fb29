// A C++ program that is the parent of its children itself, and lets others look in.
//
//   embedded_parent unix:PATH PROGRAM [ARGS...]
//
// It starts PROGRAM twice, as children that speak dialect deka: `forked` through the agent that it
// embeds, `adopted` by its own means, on a channel that the agent takes over. Their messages come
// by callback, in this process, with no RPC on the way; at the same time anybody of this user may
// observe and send to both at unix:PATH. Ends when both children have.
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "ipc/event_loop.h"
#include "server/server.h"

namespace {

using deka::agent::Agent;
using deka::agent::Child;
using deka::ipc::Dialect;
using deka::ipc::EventLoop;
using deka::server::Server;

// What this program does with its children's messages.
class Parent : public Child::Listener {
 public:
  explicit Parent(EventLoop& loop) : loop_(loop) {}

  void Expect(int children) { open_ = children; }

  void OnMessage(Child& child, std::string_view json) override {
    std::printf("%s says %s\n", child.display_name().c_str(), std::string(json).c_str());
  }
  void OnClose(Child& child) override {
    std::printf("%s is closed\n", child.display_name().c_str());
    if (--open_ == 0) loop_.Stop();
  }

 private:
  EventLoop& loop_;
  int open_ = 0;
};

// A child as a program starts it that knows of no agent: this end of its channel is `socket`.
absl::StatusOr<pid_t> StartByHand(const std::vector<std::string>& command, int& socket) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return absl::ErrnoToStatus(errno, "socketpair");
  }
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  std::string variables[] = {"DEKA_IPC_ENABLED=1", "DEKA_IPC_FD=3"};
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, ends[1], 3);
  pid_t pid = -1;
  const int error =
      posix_spawnp(&pid, arguments[0], &files, nullptr, arguments.data(), environment.data());
  posix_spawn_file_actions_destroy(&files);
  close(ends[1]);
  if (error != 0) {
    close(ends[0]);
    return absl::ErrnoToStatus(error, command[0]);
  }
  socket = ends[0];
  return pid;
}

int Fail(const char* what, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", what, std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: embedded_parent unix:PATH PROGRAM [ARGS...]\n");
    return 2;
  }
  const std::vector<std::string> command(argv + 2, argv + argc);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);

  EventLoop loop;
  Parent parent(loop);
  const auto agent = Agent::Create(loop, {});
  if (!agent.ok()) return Fail("no agent", agent.status());

  // The one more line that opens the children to others.
  const auto server = Server::Start(**agent, {.listen = {argv[1]}});
  if (!server.ok()) return Fail("not served", server.status());

  const auto forked = (*agent)->Fork({.program = command[0],
                                      .args = {command.begin() + 1, command.end()},
                                      .dialect = Dialect::kDeka},
                                     {.display_name = "forked"}, &parent);
  if (!forked.ok()) return Fail("not forked", forked.status());

  int socket = -1;
  const absl::StatusOr<pid_t> pid = StartByHand(command, socket);
  if (!pid.ok()) return Fail("not started", pid.status());
  const auto adopted =
      (*agent)->Adopt(socket, *pid, Dialect::kDeka, {.display_name = "adopted"}, &parent);
  if (!adopted.ok()) return Fail("not adopted", adopted.status());

  parent.Expect(2);
  std::printf("serving %s\n", argv[1]);
  loop.Run();
  // Who observes is shown the rest.
  (*server)->Stop(std::chrono::seconds(2));
  // Who started a process reaps it.
  waitpid(*pid, nullptr, 0);
  return 0;
}
