// Whoever outlives this process: starts its children in its stead, holds duplicates of their
// descriptors for a successor, and knows how they ended.
//
// A child is known to it by a number, which is not used again.
//
// Thread: the loop's.
#ifndef IPC_KEEPER_H_
#define IPC_KEEPER_H_

#include <cstdint>
#include <optional>

#include "absl/functional/any_invocable.h"
#include "spawn/spawn.h"

namespace deka::ipc {

class Keeper {
 public:
  // What is to be held for a child; -1: there is none. They stay the caller's.
  struct Held {
    int memory = -1;
    int channel = -1;
    int output[2] = {-1, -1};
  };

  virtual ~Keeper() = default;

  // It has ended: Start fails from now on, and OnEnd tells nothing.
  virtual bool gone() const = 0;

  // As spawn::Spawn. The program is the keeper's child. Once it is started a successor will hear of
  // it, though this process should be killed before it does.
  virtual spawn::Started Start(uint64_t number, const spawn::Options& options,
                               const Held& held) = 0;

  // Calls `ended` once with the wait status (see waitpid) when the child has ended, or with nothing
  // if the keeper has. Never from inside a call. Null takes it back.
  using Ended = absl::AnyInvocable<void(std::optional<int> wait_status)>;
  virtual void OnEnd(uint64_t number, Ended ended) = 0;

  // The end of the child is recorded: a successor need not be told.
  virtual void Acknowledge(uint64_t number) = 0;
  // The child has closed: all that is held but its memory may go.
  virtual void Release(uint64_t number) = 0;
  // Its memory too.
  virtual void Forget(uint64_t number) = 0;
};

}  // namespace deka::ipc

#endif  // IPC_KEEPER_H_
