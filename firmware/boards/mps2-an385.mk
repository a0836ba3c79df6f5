# Arm MPS2 with FPGA image AN385: Cortex-M3
CPU ?= -mcpu=cortex-m3 -mthumb -mfloat-abi=soft
MACHINE = mps2-an385
