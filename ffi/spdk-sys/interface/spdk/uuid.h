/* Unique identifiers. */
#pragma once
#include <stdint.h>

struct spdk_uuid {
	union {
		uint8_t raw[16];
	} u;
};
