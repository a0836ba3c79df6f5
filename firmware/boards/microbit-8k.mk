# BBC micro:bit, of whose RAM only half is granted: Cortex-M0 (nRF51822)
CPU ?= -mcpu=cortex-m0 -mthumb -mfloat-abi=soft
MACHINE = microbit
