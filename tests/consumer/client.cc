// A client: forks the child, talks with it, and lets it go.
//
//   client CHILD      by the agent that DEKA_TARGET names

#include "sdk/cpp/client.h"

#include <cstdio>
#include <future>
#include <string>
#include <string_view>

namespace {

int Fail(const char* what, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: client CHILD\n");
    return 2;
  }
  absl::StatusOr<deka::Client> client = deka::Client::Connect();
  if (!client.ok()) {
    return Fail("connect", client.status());
  }
  absl::StatusOr<deka::Child> child = client->Fork(argv[1]);
  if (!child.ok()) {
    return Fail("fork", child.status());
  }

  std::promise<std::string> answer;
  std::promise<void> disconnected;
  deka::Child::Listener listener;
  listener.on_message = [&](std::string_view json) { answer.set_value(std::string(json)); };
  listener.on_disconnect = [&] { disconnected.set_value(); };
  if (absl::Status status = child->Listen(listener); !status.ok()) {
    return Fail("listen", status);
  }
  if (absl::Status status = child->Send(R"({"hello":"child"})").status(); !status.ok()) {
    return Fail("send", status);
  }
  std::printf("answered %s\n", answer.get_future().get().c_str());
  if (absl::Status status = child->Disconnect(); !status.ok()) {
    return Fail("disconnect", status);
  }
  disconnected.get_future().wait();
  absl::StatusOr<deka::v1::ExitStatus> exited = child->Wait();
  if (!exited.ok()) {
    return Fail("wait", exited.status());
  }
  std::printf("exited with code %d\n", exited->code());
  return exited->code();
}
