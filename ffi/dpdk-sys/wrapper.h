/* What the bindings are made from. Functions at the end exist because C keeps them as macros over thread-local storage. */
#include <stdio.h>
#include <rte_bus.h>
#include <rte_bus_vdev.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

static inline int dpdk_errno(void) { return rte_errno; }
static inline unsigned int dpdk_lcore_id(void) { return rte_lcore_id(); }

/* Macros that expand to expressions. */
enum dpdk_lcore { DPDK_LCORE_ID_ANY = LCORE_ID_ANY };
