// What a program does first that may be started without some of its standard descriptors.
#ifndef IPC_STANDARD_DESCRIPTORS_H_
#define IPC_STANDARD_DESCRIPTORS_H_

namespace deka::ipc {

// Opens those of the descriptors 0 to 2 that are closed, so that they do not become something
// else's: a socket would get what is printed. They answer EBADF to who reads or writes them. Before
// the process has threads.
void HoldStandardDescriptors();

}  // namespace deka::ipc

#endif  // IPC_STANDARD_DESCRIPTORS_H_
