/* LD_PRELOAD: pods of process_pods share the host's network, so a TCP server that would listen on every address
   listens on its pod's own one ($POD_ADDRESS) instead, as it does in a network namespace of its own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

int bind(int socket, const struct sockaddr *wanted, socklen_t length) {
  bind_function real = (bind_function)dlsym(RTLD_NEXT, "bind");
  const char *text = getenv("POD_ADDRESS");
  struct in_addr pod;
  int type = 0;
  socklen_t size = sizeof type;
  if (!text || inet_pton(AF_INET, text, &pod) != 1) return real(socket, wanted, length);
  if (getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) || type != SOCK_STREAM) return real(socket, wanted, length);
  if (wanted->sa_family == AF_INET) {
    struct sockaddr_in own = *(const struct sockaddr_in *)wanted;
    if (own.sin_addr.s_addr != INADDR_ANY) return real(socket, wanted, length);
    own.sin_addr = pod;
    return real(socket, (const struct sockaddr *)&own, sizeof own);
  }
  if (wanted->sa_family == AF_INET6) {
    struct sockaddr_in6 own = *(const struct sockaddr_in6 *)wanted;
    if (!IN6_IS_ADDR_UNSPECIFIED(&own.sin6_addr)) return real(socket, wanted, length);
    int only = 0;
    size = sizeof only;
    if (!getsockopt(socket, IPPROTO_IPV6, IPV6_V6ONLY, &only, &size) && only) {
      own.sin6_addr = in6addr_loopback; /* its twin has the IPv4 address, and no pod has another one: */
      own.sin6_port = 0;                /* a port that nobody asks for */
      return real(socket, (const struct sockaddr *)&own, sizeof own);
    }
    own.sin6_addr = (struct in6_addr){{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}}};
    for (int i = 0; i < 4; i++) own.sin6_addr.s6_addr[12 + i] = ((const unsigned char *)&pod)[i];
    return real(socket, (const struct sockaddr *)&own, sizeof own);
  }
  return real(socket, wanted, length);
}
