# What the blocks of Vivado's catalogue have, as far as a design here may use them: versions,
# properties with the values that they take and their defaults, pins, interfaces, addresses.
# Sources: PG201 (zynq_ultra_ps_e), PG021 (axi_dma), PG247 (smartconnect), PG164 (proc_sys_reset),
# PG065 (clk_wiz), PG177 and UG994 (xlconcat, xlconstant).
#
#   block NAME VERSION {PROPERTY VALUES DEFAULT ...} SCRIPT
# VALUES: a list, or {range LOW HIGH}, or {real LOW HIGH}. SCRIPT sees the properties as variables.
#   pin NAME in|out KIND BITS required|optional [CLOCK]     KIND: data, clock, reset_low; 0 bits: any
#   interface NAME master|slave stream|lite|memory|any BITS CLOCK required|optional   0 bits: any
#   space NAME INTERFACE LOW HIGH ...       addresses that a master gives, and those that get through
#   segment NAME INTERFACE BYTES            addresses that a slave takes


block zynq_ultra_ps_e 3.5 {
    PSU__USE__M_AXI_GP0 {0 1} 1    PSU__MAXIGP0__DATA_WIDTH {32 64 128} 128
    PSU__USE__M_AXI_GP1 {0 1} 1    PSU__MAXIGP1__DATA_WIDTH {32 64 128} 128
    PSU__USE__M_AXI_GP2 {0 1} 0    PSU__MAXIGP2__DATA_WIDTH {32 64 128} 32
    PSU__USE__S_AXI_GP0 {0 1} 0    PSU__SAXIGP0__DATA_WIDTH {32 64 128} 128
    PSU__USE__S_AXI_GP1 {0 1} 0    PSU__SAXIGP1__DATA_WIDTH {32 64 128} 128
    PSU__USE__S_AXI_GP2 {0 1} 0    PSU__SAXIGP2__DATA_WIDTH {32 64 128} 128
    PSU__USE__S_AXI_GP3 {0 1} 0    PSU__SAXIGP3__DATA_WIDTH {32 64 128} 128
    PSU__USE__S_AXI_GP4 {0 1} 0    PSU__SAXIGP4__DATA_WIDTH {32 64 128} 128
    PSU__USE__S_AXI_GP5 {0 1} 0    PSU__SAXIGP5__DATA_WIDTH {32 64 128} 128
    PSU__USE__S_AXI_GP6 {0 1} 0    PSU__SAXIGP6__DATA_WIDTH {32 64 128} 128
    PSU__USE__IRQ0 {0 1} 1         PSU__USE__IRQ1 {0 1} 0
    PSU__USE__FABRIC__RST {0 1} 1  PSU__NUM_FABRIC_RESETS {1 2 3 4} 1
    PSU__FPGA_PL0_ENABLE {0 1} 1   PSU__FPGA_PL1_ENABLE {0 1} 0
    PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ {real 1 400} 100
    PSU__CRL_APB__PL1_REF_CTRL__FREQMHZ {real 1 400} 100
} {
    if {$PSU__FPGA_PL0_ENABLE} { pin pl_clk0 out clock 1 optional; clock pl_clk0 $PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ }
    if {$PSU__FPGA_PL1_ENABLE} { pin pl_clk1 out clock 1 optional; clock pl_clk1 $PSU__CRL_APB__PL1_REF_CTRL__FREQMHZ }
    if {$PSU__USE__FABRIC__RST} { pin pl_resetn0 out reset_low 1 optional }
    if {$PSU__USE__IRQ0} { pin pl_ps_irq0 in data 0 optional }
    if {$PSU__USE__IRQ1} { pin pl_ps_irq1 in data 0 optional }
    foreach {gp name} {0 hpm0_fpd 1 hpm1_fpd 2 hpm0_lpd} {
        if {[set PSU__USE__M_AXI_GP$gp]} {
            pin maxi${name}_aclk in clock 1 required
            interface M_AXI_[string toupper $name] master memory [set PSU__MAXIGP${gp}__DATA_WIDTH] maxi${name}_aclk optional
        }
    }
    space Data {M_AXI_HPM0_FPD M_AXI_HPM1_FPD M_AXI_HPM0_LPD} \
        0xA0000000 0xB0000000  0x400000000 0x500000000  0x1000000000 0x4800000000
    foreach {gp name port} {0 hpc0_fpd HPC0 1 hpc1_fpd HPC1 2 hp0_fpd HP0 3 hp1_fpd HP1 4 hp2_fpd HP2 5 hp3_fpd HP3 6 lpd LPD} {
        if {[set PSU__USE__S_AXI_GP$gp]} {
            pin saxi${name}_aclk in clock 1 required
            set interface S_AXI_[string toupper $name]
            interface $interface slave memory [set PSU__SAXIGP${gp}__DATA_WIDTH] saxi${name}_aclk required
            segment SAXIGP$gp/${port}_DDR_LOW $interface 0x80000000
            segment SAXIGP$gp/${port}_DDR_HIGH $interface 0x80000000
            segment SAXIGP$gp/${port}_LPS_OCM $interface 0x1000000
            segment SAXIGP$gp/${port}_QSPI $interface 0x20000000
        }
    }
}

block axi_dma 7.1 {
    c_include_sg {0 1} 1                 c_sg_include_stscntrl_strm {0 1} 1
    c_sg_length_width {range 8 26} 14    c_addr_width {range 32 64} 32
    c_enable_multi_channel {0 1} 0       c_micro_dma {0 1} 0
    c_include_mm2s {0 1} 1               c_include_s2mm {0 1} 1
    c_include_mm2s_dre {0 1} 0           c_include_s2mm_dre {0 1} 0
    c_include_mm2s_sf {0 1} 1            c_include_s2mm_sf {0 1} 1
    c_m_axi_mm2s_data_width {32 64 128 256 512 1024} 32
    c_m_axi_s2mm_data_width {32 64 128 256 512 1024} 32
    c_m_axis_mm2s_tdata_width {8 16 32 64 128 256 512 1024} 32
    c_s_axis_s2mm_tdata_width {8 16 32 64 128 256 512 1024} 32
    c_mm2s_burst_size {2 4 8 16 32 64 128 256} 16
    c_s2mm_burst_size {2 4 8 16 32 64 128 256} 16
    c_single_interface {0 1} 0
} {
    pin s_axi_lite_aclk in clock 1 required
    pin axi_resetn in reset_low 1 required s_axi_lite_aclk
    interface S_AXI_LITE slave lite 32 s_axi_lite_aclk required
    segment S_AXI_LITE/Reg S_AXI_LITE 0x10000
    if {$c_include_sg} {
        pin m_axi_sg_aclk in clock 1 required
        interface M_AXI_SG master memory 32 m_axi_sg_aclk required
        space Data_SG M_AXI_SG 0 [expr {1 << $c_addr_width}]
        if {$c_sg_include_stscntrl_strm} {
            if {$c_include_mm2s} { interface M_AXIS_CNTRL master stream 32 m_axi_mm2s_aclk required }
            if {$c_include_s2mm} { interface S_AXIS_STS slave stream 32 m_axi_s2mm_aclk required }
        }
    }
    if {$c_include_mm2s} {
        if {$c_m_axis_mm2s_tdata_width > $c_m_axi_mm2s_data_width} { error "MM2S: the stream is wider than the memory" }
        pin m_axi_mm2s_aclk in clock 1 required
        pin mm2s_prmry_reset_out_n out reset_low 1 optional
        pin mm2s_introut out data 1 optional
        interface M_AXI_MM2S master memory $c_m_axi_mm2s_data_width m_axi_mm2s_aclk required
        interface M_AXIS_MM2S master stream $c_m_axis_mm2s_tdata_width m_axi_mm2s_aclk required
        space Data_MM2S M_AXI_MM2S 0 [expr {1 << $c_addr_width}]
    }
    if {$c_include_s2mm} {
        if {$c_s_axis_s2mm_tdata_width > $c_m_axi_s2mm_data_width} { error "S2MM: the stream is wider than the memory" }
        pin m_axi_s2mm_aclk in clock 1 required
        pin s2mm_prmry_reset_out_n out reset_low 1 optional
        pin s2mm_introut out data 1 optional
        interface M_AXI_S2MM master memory $c_m_axi_s2mm_data_width m_axi_s2mm_aclk required
        interface S_AXIS_S2MM slave stream $c_s_axis_s2mm_tdata_width m_axi_s2mm_aclk required
        space Data_S2MM M_AXI_S2MM 0 [expr {1 << $c_addr_width}]
    }
}

block smartconnect 1.0 {
    NUM_SI {range 1 16} 1    NUM_MI {range 1 16} 1    NUM_CLKS {range 1 16} 1
    HAS_ARESETN {0 1} 1      ADVANCED_PROPERTIES {range 0 0} 0
} {
    set clocks aclk
    for {set i 1} {$i < $NUM_CLKS} {incr i} { lappend clocks aclk$i }
    foreach clock $clocks { pin $clock in clock 1 required }
    if {$HAS_ARESETN} { pin aresetn in reset_low 1 optional aclk }
    for {set i 0} {$i < $NUM_SI} {incr i} { interface [format S%02d_AXI $i] slave any 0 $clocks required }
    for {set i 0} {$i < $NUM_MI} {incr i} { interface [format M%02d_AXI $i] master any 0 $clocks required }
}

block proc_sys_reset 5.0 {
    C_NUM_BUS_RST {range 1 8} 1          C_NUM_PERP_RST {range 1 16} 1
    C_NUM_INTERCONNECT_ARESETN {range 1 8} 1    C_NUM_PERP_ARESETN {range 1 16} 1
    C_EXT_RST_WIDTH {range 1 16} 4       C_AUX_RST_WIDTH {range 1 16} 4
    C_EXT_RESET_HIGH {0 1} 0             C_AUX_RESET_HIGH {0 1} 0
} {
    pin slowest_sync_clk in clock 1 required
    pin ext_reset_in in reset_low 1 required
    pin aux_reset_in in data 1 optional
    pin mb_debug_sys_rst in data 1 optional
    pin dcm_locked in data 1 required
    pin mb_reset out data 1 optional
    pin bus_struct_reset out data $C_NUM_BUS_RST optional
    pin peripheral_reset out data $C_NUM_PERP_RST optional
    pin interconnect_aresetn out reset_low $C_NUM_INTERCONNECT_ARESETN optional slowest_sync_clk
    pin peripheral_aresetn out reset_low $C_NUM_PERP_ARESETN optional slowest_sync_clk
}

block clk_wiz 6.0 {
    PRIMITIVE {MMCM PLL Auto} MMCM
    PRIM_SOURCE {Single_ended_clock_capable_pin Differential_clock_capable_pin Global_buffer No_buffer} Single_ended_clock_capable_pin
    PRIM_IN_FREQ {real 10 1066} 100.000
    NUM_OUT_CLKS {range 1 7} 1
    CLKOUT1_USED {true false} true       CLKOUT2_USED {true false} false
    CLKOUT3_USED {true false} false
    CLKOUT1_REQUESTED_OUT_FREQ {real 6.25 775} 100.000
    CLKOUT2_REQUESTED_OUT_FREQ {real 6.25 775} 100.000
    CLKOUT3_REQUESTED_OUT_FREQ {real 6.25 775} 100.000
    USE_LOCKED {true false} true         USE_RESET {true false} true
    RESET_TYPE {ACTIVE_HIGH ACTIVE_LOW} ACTIVE_HIGH
    USE_PHASE_ALIGNMENT {true false} true
} {
    pin clk_in1 in clock 1 required
    if {$USE_RESET} {
        if {$RESET_TYPE eq "ACTIVE_LOW"} { pin resetn in reset_low 1 required } else { pin reset in data 1 required }
    }
    if {$USE_LOCKED} { pin locked out data 1 optional }
    set used 0
    foreach n {1 2 3} {
        if {[set CLKOUT${n}_USED]} {
            incr used
            pin clk_out$n out clock 1 optional
            clock clk_out$n [set CLKOUT${n}_REQUESTED_OUT_FREQ]
        }
    }
    if {$used != $NUM_OUT_CLKS} { error "clk_wiz: NUM_OUT_CLKS is $NUM_OUT_CLKS, but $used outputs are used" }
}

block xlconcat 2.1 {
    NUM_PORTS {range 1 32} 2
} {
    for {set i 0} {$i < $NUM_PORTS} {incr i} { pin In$i in data 1 required }
    pin dout out data $NUM_PORTS optional
}

block xlconstant 1.1 {
    CONST_WIDTH {range 1 4096} 1    CONST_VAL {range 0 4294967295} 1
} {
    pin dout out data $CONST_WIDTH optional
}
