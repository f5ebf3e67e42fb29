// Where an agent serves, and its clients look for it, unless somebody says otherwise.
//
// Thread: any that does not race with changes of the environment.
#ifndef IPC_DEFAULT_ADDRESS_H_
#define IPC_DEFAULT_ADDRESS_H_

#include <string>

namespace deka::ipc {

// `unix:` and the path of this user's socket: $XDG_RUNTIME_DIR/deka/agent.sock if that variable
// names an absolute path, else /run/deka/agent.sock for root, else /tmp/deka-UID/agent.sock.
std::string DefaultAddress();

}  // namespace deka::ipc

#endif  // IPC_DEFAULT_ADDRESS_H_
