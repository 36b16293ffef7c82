# A stand-in for Vivado's Tcl shell that checks and records what a script asks for.
#
#   tclsh vivado_stub.tcl RECORD SETTINGS SCRIPT [ARGUMENTS]
#
# It knows the commands below with their options (UG835), the blocks of vivado_blocks.tcl and the
# packaged blocks that SETTINGS defines. Any other command, option, property, value, pin or interface
# is an error, and validate_bd_design looks for what is not connected, clocks that differ, resets of
# another clock, widths, and addresses. RECORD gets each command, a Tcl list a line.
#
# SETTINGS may set stub(version), stub(setup), stub(hold), stub(fails), stub(board_parts), and
# stub(repository): the folder whose packaged blocks it defines by `packaged`.

array set stub {version 2023.2 setup 0.1 hold 0.02 fails {} repository {} board_parts {
    xilinx.com:kv260_som:part0:1.4 xilinx.com:zcu102:part0:3.4
}}
array set catalogue {}
array set packages {}
set parts {xck26-sfvc784-2LV-c xczu9eg-ffvb1156-2-e}

proc block {name version properties script} {
    set ::catalogue(xilinx.com:ip:$name:$version) [list $properties $script]
}
proc packaged {vlnv script} { set ::packages($vlnv) [list {} $script] }

# ---- Commands and their options: a dash is a flag, NAME= takes a value, the rest is what may come.

array set commands {
    version {-short}
    create_project {-part= -force -in_memory 0..2}
    close_project {0}
    current_project {0}
    current_fileset {0}
    set_property {-dict= 1..3}
    get_property {2}
    get_board_parts {-quiet 1}
    get_ipdefs {-all -filter= 0..1}
    update_ip_catalog {0}
    create_bd_design {1}
    create_bd_cell {-type= -vlnv= 1}
    apply_bd_automation {-rule= -config= 1}
    connect_bd_net {2..64}
    connect_bd_intf_net {2}
    get_bd_cells {1}
    get_bd_pins {1}
    get_bd_intf_pins {1}
    get_bd_addr_spaces {1}
    get_bd_addr_segs {1}
    assign_bd_address {-offset= -range= -target_address_space= -force 1}
    exclude_bd_addr_seg {-target_address_space= 1}
    validate_bd_design {0}
    save_bd_design {0}
    get_files {1}
    generate_target {2}
    make_wrapper {-files= -top}
    add_files {-norecurse 1}
    update_compile_order {-fileset=}
    get_runs {1}
    launch_runs {-jobs= -to_step= 1}
    wait_on_run {1}
    open_run {1}
    report_utilization {-file= -hierarchical}
    report_timing_summary {-file= -max_paths=}
    report_power {-file=}
    report_drc {-file=}
    write_hw_platform {-fixed -include_bit -force -file= 0}
    read_verilog {-sv 1}
    synth_design {-top= -part= -mode=}
    create_clock {-name= -period= 1}
    get_ports {1}
    opt_design {0}
    place_design {0}
    phys_opt_design {0}
    route_design {0}
    get_timing_paths {-max_paths= -setup -hold}
}

# Split arguments into options (an array in the caller's `option`) and `rest`, or complain.
proc call {command arguments} {
    upvar option option rest rest
    puts $::record [linsert $arguments 0 $command]
    array unset option
    set rest {}
    set known $::commands($command)
    set count [lindex $known end]
    if {![regexp {^[0-9.]+$} $count]} { set count 0 }
    while {[llength $arguments]} {
        set word [lindex $arguments 0]
        set arguments [lrange $arguments 1 end]
        if {![regexp {^-[a-z]} $word]} { lappend rest $word; continue }
        if {$word in $known} { set option($word) 1; continue }
        if {"$word=" ni $known} { error "$command: unknown option '$word'" }
        if {![llength $arguments]} { error "$command: $word wants a value" }
        set option($word) [lindex $arguments 0]
        set arguments [lrange $arguments 1 end]
    }
    lassign [split [string map {.. " "} $count]] low high
    if {$high eq ""} { set high $low }
    set n [llength $rest]
    if {$n < $low || $n > $high} { error "$command: $n arguments, not $count" }
    foreach word $rest { if {$word eq ""} { error "$command: an argument is empty" } }
}

proc unknown {name args} { error "Vivado has no command '$name'" }

# ---- Projects, files, runs

array set project {open 0}
set files {}

proc version {args} { call version $args; return $::stub(version) }
proc create_project {args} {
    call create_project $args
    if {$::project(open)} { error "create_project: a project is open" }
    if {$option(-part) ni $::parts} { error "create_project: no part '$option(-part)'" }
    array unset ::project
    array set ::project [list open 1 part $option(-part) memory [info exists option(-in_memory)] \
        name [lindex $rest 0] folder [lindex $rest 1] top {} sources {} board_part {}]
}
proc close_project {args} { call close_project $args; need_project; set ::project(open) 0 }
proc need_project {} { if {!$::project(open)} { error "no project is open" } }
proc current_project {args} { call current_project $args; need_project; return project: }
proc current_fileset {args} { call current_fileset $args; need_project; return fileset: }
proc get_board_parts {args} {
    call get_board_parts $args
    set found [lsearch -all -inline -glob $::stub(board_parts) [lindex $rest 0]]
    if {![llength $found] && ![info exists option(-quiet)]} { error "no board part [lindex $rest 0]" }
    return $found
}
proc get_ipdefs {args} {
    call get_ipdefs $args
    if {![regexp {^VLNV =~ (\S+)$} $option(-filter) -> pattern]} { error "get_ipdefs: filter '$option(-filter)'" }
    return [lsearch -all -inline -glob [array names ::catalogue] $pattern]
}
proc update_ip_catalog {args} {
    call update_ip_catalog $args
    need_project
    if {[info exists ::project(ip_repo_paths)]} {
        foreach path $::project(ip_repo_paths) {
            if {![file isdirectory $path]} { error "update_ip_catalog: no folder $path" }
            if {[file normalize $path] eq [file normalize $::stub(repository)]} {
                foreach vlnv [array names ::packages] { set ::catalogue($vlnv) $::packages($vlnv) }
            }
        }
    }
}

set project_properties {board_part board_connections target_language ip_repo_paths}
set run_properties {strategy}
set strategies {Flow_PerfOptimized_high Performance_ExplorePostRoutePhysOpt}

proc set_property {args} {
    call set_property $args
    if {[info exists option(-dict)]} {
        if {[llength $rest] != 1} { error "set_property: -dict LIST OBJECT" }
        set pairs $option(-dict)
        set object [lindex $rest 0]
        if {[llength $pairs] % 2} { error "set_property: odd list" }
    } else {
        if {[llength $rest] != 3} { error "set_property: NAME VALUE OBJECT" }
        set pairs [lrange $rest 0 1]
        set object [lindex $rest 2]
    }
    foreach {name value} $pairs { set_one $name $value $object }
}
proc set_one {name value object} {
    set what [lindex [split $object :] 0]
    switch $what {
        project {
            if {$name ni $::project_properties} { error "a project has no property '$name'" }
            if {$name eq "board_part" && $value ni $::stub(board_parts)} { error "no board part '$value'" }
            if {$name eq "ip_repo_paths"} { set value [list {*}$value] }
            set ::project($name) $value
        }
        fileset {
            if {$name ne "top"} { error "a fileset has no property '$name' here" }
            set ::project(top) $value
        }
        run {
            if {$name ni $::run_properties} { error "a run has no property '$name' here" }
            if {$value ni $::strategies} { error "no strategy '$value'" }
        }
        file {
            if {$name ne "synth_checkpoint_mode" || $value ni {Hierarchical Singular None}} {
                error "a block design's file has no property '$name' = '$value' here"
            }
            set ::project(checkpoints) $value
        }
        cell { set_cell $name $value [string range $object 5 end] }
        default { error "set_property: no such object '$object'" }
    }
}
proc get_property {args} {
    call get_property $args
    lassign $rest name object
    switch -glob "[lindex [split $object :] 0] $name" {
        "run PROGRESS" { expr {[string range $object 4 end] in $::stub(fails) ? "40%" : "100%"} }
        "run STATUS" { expr {[string range $object 4 end] in $::stub(fails) ? "synth_design ERROR" : "Complete!"} }
        "run DIRECTORY" { file join $::project(folder) $::project(name).runs [string range $object 4 end] }
        "run STATS.WNS" { return $::stub(setup) }
        "run STATS.WHS" { return $::stub(hold) }
        "path SLACK" { set ::stub([string range $object 5 end]) }
        default { error "get_property: '$object' has no '$name'" }
    }
}
proc get_files {args} {
    call get_files $args
    if {[lindex $rest 0] ni $::files} { error "no file [lindex $rest 0]" }
    return file:[lindex $rest 0]
}
proc generate_target {args} {
    call generate_target $args
    if {!$::design(saved)} { error "generate_target: the block design is not saved" }
    set ::design(generated) 1
    set folder [file join $::project(folder) $::project(name).gen sources_1 bd $::design(name) hw_handoff]
    file mkdir $folder
    touch [file join $folder $::design(name).hwh] "<EDKSYSTEM/>"
}
proc make_wrapper {args} {
    call make_wrapper $args
    if {![info exists option(-top)]} { error "make_wrapper: -top" }
    return [file join $::project(folder) $::design(name)_wrapper.v]
}
proc add_files {args} { call add_files $args; lappend ::project(sources) [lindex $rest 0] }
proc update_compile_order {args} { call update_compile_order $args }
proc get_runs {args} {
    call get_runs $args
    if {[lindex $rest 0] ni {synth_1 impl_1}} { error "no run [lindex $rest 0]" }
    return run:[lindex $rest 0]
}
proc launch_runs {args} {
    call launch_runs $args
    set run [lindex $rest 0]
    if {$::project(top) ne "$::design(name)_wrapper" || ![llength $::project(sources)]} { error "launch_runs: no top" }
    if {!$::design(generated)} { error "launch_runs: generate_target first" }
    if {$run eq "impl_1" && ![info exists ::done(synth_1)]} { error "launch_runs: synth_1 first" }
    set ::launched $run
    if {$run ni $::stub(fails)} {
        set folder [file join $::project(folder) $::project(name).runs $run]
        file mkdir $folder
        if {[info exists option(-to_step)]} {
            if {$option(-to_step) ne "write_bitstream"} { error "launch_runs: -to_step $option(-to_step)" }
            touch [file join $folder $::design(name)_wrapper.bit] bits
        }
    }
}
proc wait_on_run {args} {
    call wait_on_run $args
    if {![info exists ::launched] || $::launched ne [lindex $rest 0]} { error "wait_on_run: not launched" }
    set ::done([lindex $rest 0]) 1
}
proc open_run {args} {
    call open_run $args
    if {![info exists ::done(impl_1)]} { error "open_run: impl_1 has not run" }
    set ::opened 1
}
proc touch {path text} { set file [open $path w]; puts $file $text; close $file }
proc report {command arguments} {
    upvar option option rest rest
    uplevel 1 [list call $command $arguments]
    if {![info exists ::opened]} { error "$command: no design is open" }
    touch $option(-file) "$command of the stand-in"
}
foreach name {report_utilization report_timing_summary report_power report_drc} {
    proc $name {args} "report $name \$args"
}
proc write_hw_platform {args} { report write_hw_platform $args }

# ---- Out of context

proc read_verilog {args} {
    call read_verilog $args
    foreach path [lindex $rest 0] {
        if {![file exists $path]} { error "read_verilog: no $path" }
        set kind [expr {[file extension $path] eq ".sv"}]
        if {$kind && ![info exists option(-sv)]} { error "read_verilog: $path needs -sv" }
        lappend ::project(sources) $path
    }
}
proc synth_design {args} {
    call synth_design $args
    if {$option(-part) ne $::project(part)} { error "synth_design: another part" }
    if {$option(-mode) ne "out_of_context"} { error "synth_design: -mode $option(-mode)" }
    set found 0
    foreach path $::project(sources) {
        set file [open $path]; set text [read $file]; close $file
        if {[regexp "module $option(-top)\\M" $text]} { set found 1 }
    }
    if {!$found} { error "synth_design: no module $option(-top) in what was read" }
    set ::opened 1
    set ::stage synth_design
}
foreach {name before} {opt_design synth_design place_design opt_design phys_opt_design place_design route_design phys_opt_design} {
    proc $name {args} "call $name \$args; if {\$::stage ne {$before}} { error {$name: $before first} }; set ::stage $name"
}
proc get_ports {args} { call get_ports $args; return port:[lindex $rest 0] }
proc create_clock {args} {
    call create_clock $args
    if {![info exists ::opened]} { error "create_clock: no design" }
    if {[lindex $rest 0] ne "port:aclk"} { error "create_clock: not the clock" }
}
proc get_timing_paths {args} {
    call get_timing_paths $args
    return path:[expr {[info exists option(-hold)] ? "hold" : "setup"}]
}

# ---- Block designs

array set design {saved 0 generated 0}
array set cells {}       ;# name -> vlnv
array set values {}      ;# cell,property
array set nets {}        ;# cell/pin -> net number
array set links {}       ;# cell/interface -> the other end
set assigned {}          ;# space segment offset bytes
set excluded {}

proc create_bd_design {args} {
    call create_bd_design $args
    need_project
    if {$::project(board_part) eq ""} { error "create_bd_design: the project has no board_part" }
    set ::design(name) [lindex $rest 0]
    lappend ::files [lindex $rest 0].bd
}
proc create_bd_cell {args} {
    call create_bd_cell $args
    if {$option(-type) ne "ip"} { error "create_bd_cell: -type $option(-type)" }
    set name [lindex $rest 0]
    if {[info exists ::cells($name)]} { error "create_bd_cell: $name is there already" }
    set known [array names ::catalogue]
    set vlnv $option(-vlnv)
    set found [lindex [lsort -dictionary [lsearch -all -inline -glob $known "$vlnv*"]] end]
    if {$found ne $vlnv && ![string match "$vlnv:*" $found]} { error "create_bd_cell: no $vlnv in the catalogue" }
    set ::cells($name) $found
    foreach {property allowed default} [lindex $::catalogue($found) 0] { set ::values($name,$property) $default }
}
proc set_cell {name value cell} {
    if {![regexp {^CONFIG\.(.+)$} $name -> property]} { error "$cell: property '$name' without CONFIG." }
    foreach {known allowed default} [lindex $::catalogue($::cells($cell)) 0] {
        if {$known ne $property} { continue }
        lassign $allowed kind low high
        if {$kind in {range real}} {
            set type [expr {$kind eq "real" ? "double" : "entier"}]
            if {![string is $type -strict $value] || $value < $low || $value > $high} {
                error "$cell: $property = '$value' is not in $low..$high"
            }
        } elseif {$value ni $allowed} { error "$cell: $property = '$value' is not one of $allowed" }
        set ::values($cell,$property) $value
        return
    }
    error "$cell ($::cells($cell)) has no property '$property'"
}
proc apply_bd_automation {args} {
    call apply_bd_automation $args
    if {$option(-rule) ne "xilinx.com:bd_rule:zynq_ultra_ps_e"} { error "no rule $option(-rule)" }
    if {$option(-config) ne {apply_board_preset "1"}} { error "apply_bd_automation: -config $option(-config)" }
    set cell [string range [lindex $rest 0] 5 end]
    if {![string match *:zynq_ultra_ps_e:* $::cells($cell)]} { error "apply_bd_automation: $cell is no processor" }
    foreach key [array names ::values $cell,*] {
        foreach {property allowed default} [lindex $::catalogue($::cells($cell)) 0] {
            if {"$cell,$property" eq $key} { set ::values($key) $default }
        }
    }
    set ::design(preset) 1
}

# What a cell has, as its properties say: a dict of `pins`, `interfaces`, `spaces`, `segments`, `clocks`.
proc parts {cell} {
    set ::made [dict create pins {} interfaces {} spaces {} segments {} clocks {}]
    lassign $::catalogue($::cells($cell)) properties script
    set body ""
    foreach {property allowed default} $properties {
        append body [list set $property $::values($cell,$property)] \n
    }
    apply [list {} $body$script]
    return $::made
}
proc pin {name way kind bits need {clock ""}} { dict set ::made pins $name [list $way $kind $bits $need $clock] }
proc interface {name role kind bits clocks need} { dict set ::made interfaces $name [list $role $kind $bits $clocks $need] }
proc space {name interfaces args} { dict set ::made spaces $name [list $interfaces $args] }
proc segment {name interface bytes} { dict set ::made segments $name [list $interface $bytes] }
proc clock {pin mhz} { dict set ::made clocks $pin $mhz }

proc get_bd_cells {args} {
    call get_bd_cells $args
    if {![info exists ::cells([lindex $rest 0])]} { error "no cell [lindex $rest 0]" }
    return cell:[lindex $rest 0]
}
proc find {group path} {
    set cell [lindex [split $path /] 0]
    set name [string range $path [string length $cell]+1 end]
    if {![info exists ::cells($cell)]} { error "no cell $cell" }
    set found [dict get [parts $cell] $group]
    if {![dict exists $found $name]} { error "$cell ($::cells($cell)) has no $group '$name'" }
    return [dict get $found $name]
}
foreach {command group} {get_bd_pins pins get_bd_intf_pins interfaces get_bd_addr_spaces spaces get_bd_addr_segs segments} {
    proc $command {args} "call $command \$args; find $group \[lindex \$rest 0\]; return \[lindex \$rest 0\]"
}
proc connect_bd_net {args} {
    call connect_bd_net $args
    set number {}
    foreach pin $rest { if {[info exists ::nets($pin)]} { lappend number $::nets($pin) } }
    set number [lsort -unique $number]
    if {[llength $number] > 1} { error "connect_bd_net: [join $rest { }] are on different nets" }
    if {![llength $number]} { set number [incr ::net_count] }
    foreach pin $rest { find pins $pin; set ::nets($pin) $number }
}
proc connect_bd_intf_net {args} {
    call connect_bd_intf_net $args
    lassign $rest a b
    foreach end $rest { if {[info exists ::links($end)]} { error "connect_bd_intf_net: $end is connected already" } }
    lassign [find interfaces $a] role_a kind_a bits_a
    lassign [find interfaces $b] role_b kind_b bits_b
    if {$role_a ne "master" || $role_b ne "slave"} { error "connect_bd_intf_net: $a is a $role_a, $b a $role_b" }
    set kinds [lsort -unique [list $kind_a $kind_b]]
    if {$kinds ni {stream lite memory any {any lite} {any memory}}} { error "connect_bd_intf_net: $a is $kind_a, $b is $kind_b" }
    if {$bits_a && $bits_b && $bits_a != $bits_b} { error "connect_bd_intf_net: $a has $bits_a bits, $b $bits_b" }
    set ::links($a) $b
    set ::links($b) $a
}
proc assign_bd_address {args} {
    call assign_bd_address $args
    lappend ::assigned [list $option(-target_address_space) [lindex $rest 0] [expr {$option(-offset)}] [expr {$option(-range)}]]
}
proc exclude_bd_addr_seg {args} {
    call exclude_bd_addr_seg $args
    lappend ::excluded [list $option(-target_address_space) [lindex $rest 0]]
}
proc save_bd_design {args} {
    call save_bd_design $args
    if {![info exists ::design(valid)]} { error "save_bd_design: validate_bd_design first" }
    set ::design(saved) 1
}
# ---- Run

set here [file dirname [file normalize [info script]]]
set record [open [lindex $argv 0] w]
source [file join $here vivado_blocks.tcl]
source [file join $here vivado_checks.tcl]
source [lindex $argv 1]
set script [lindex $argv 2]
set argv [lrange $argv 3 end]
if {[catch {source $script} message]} {
    puts stderr "ERROR: $message"
    close $record
    exit 1
}
close $record
