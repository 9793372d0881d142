/* The environment over a DPDK that the process initialises and ends itself: in place of spdk_env_init() and _fini(). */
#pragma once
#include <stdbool.h>

int spdk_env_dpdk_post_init(bool legacy_mem);
void spdk_env_dpdk_post_fini(void);
