# What validate_bd_design of vivado_stub.tcl looks for: open pins and interfaces, clocks, resets,
# widths, addresses.

proc validate_bd_design {args} {
    call validate_bd_design $args
    if {![info exists ::design(preset)]} { error "the processor has no board preset" }
    check_nets
    check_pins
    check_interfaces
    check_addresses
    set ::design(valid) 1
}

proc net {pin} { expr {[info exists ::nets($pin)] ? $::nets($pin) : "none"} }
proc check_nets {} {
    foreach {pin number} [array get ::nets] { lappend members($number) $pin }
    foreach number [array names members] {
        set drivers {}
        set kinds {}
        set widths {}
        foreach pin $members($number) {
            lassign [find pins $pin] way kind bits
            if {$way eq "out"} { lappend drivers $pin }
            lappend kinds $kind
            if {$bits} { lappend widths $bits }
        }
        if {[llength $drivers] != 1} { error "[lsort $members($number)]: [llength $drivers] drivers" }
        if {[llength [lsort -unique $kinds]] > 1} { error "[lsort $members($number)]: joins [lsort -unique $kinds]" }
        if {[llength [lsort -unique $widths]] > 1} { error "[lsort $members($number)]: widths [lsort -unique $widths]" }
        set ::driver($number) [lindex $drivers 0]
    }
}
proc check_pins {} {
    foreach cell [array names ::cells] {
        dict for {name about} [dict get [parts $cell] pins] {
            lassign $about way kind bits need clock
            if {$need eq "required" && [net $cell/$name] eq "none"} { error "$cell/$name is not connected" }
            if {$kind ne "reset_low" || $way ne "in" || $clock eq "" || [net $cell/$name] eq "none"} { continue }
            # A reset must come from the reset block of the clock that it is used with.
            set source $::driver([net $cell/$name])
            lassign [find pins $source] a b c d its
            if {$its eq ""} { error "$cell/$name: the reset $source follows no clock" }
            if {[net [lindex [split $source /] 0]/$its] ne [net $cell/$clock]} { error "$cell/$name: $source follows another clock" }
        }
    }
}
proc clock_nets {interface} {
    set cell [lindex [split $interface /] 0]
    set found {}
    foreach clock [lindex [find interfaces $interface] 3] { lappend found [net $cell/$clock] }
    return $found
}
proc check_interfaces {} {
    foreach cell [array names ::cells] {
        dict for {name about} [dict get [parts $cell] interfaces] {
            set end $cell/$name
            if {![info exists ::links($end)]} {
                if {[lindex $about 4] eq "required"} { error "$end is not connected" }
                continue
            }
            set shared 0
            foreach clock [clock_nets $end] { if {$clock in [clock_nets $::links($end)]} { set shared 1 } }
            if {!$shared} { error "$end and $::links($end) have different clocks" }
        }
    }
}
# The slaves that a master reaches, through whatever joins them.
proc reached {interface} {
    if {![info exists ::links($interface)]} { return {} }
    set other $::links($interface)
    set cell [lindex [split $other /] 0]
    if {![string match *:smartconnect:* $::cells($cell)]} { return [list $other] }
    set found {}
    dict for {name about} [dict get [parts $cell] interfaces] {
        if {[lindex $about 0] eq "master"} { lappend found {*}[reached $cell/$name] }
    }
    return $found
}
proc check_addresses {} {
    foreach cell [array names ::cells] {
        dict for {name about} [dict get [parts $cell] spaces] {
            lassign $about interfaces windows
            set wanted {}
            foreach interface $interfaces {
                if {![dict exists [dict get [parts $cell] interfaces] $interface]} { continue }
                foreach slave [reached $cell/$interface] {
                    set owner [lindex [split $slave /] 0]
                    dict for {segment its} [dict get [parts $owner] segments] {
                        if {"$owner/[lindex $its 0]" eq $slave} { lappend wanted $owner/$segment }
                    }
                }
            }
            check_space $cell/$name $wanted $windows
        }
    }
}
proc check_space {space wanted windows} {
    set places {}
    set have {}
    foreach entry $::assigned {
        lassign $entry its segment offset bytes
        if {$its ne $space} { continue }
        if {$segment ni $wanted} { error "$space does not reach $segment" }
        if {$bytes & ($bytes - 1) || $offset % $bytes || $bytes < 4096} { error "$segment: $bytes bytes at $offset" }
        if {$bytes > [lindex [find segments $segment] 1]} { error "$segment: $bytes bytes are more than it has" }
        set inside 0
        foreach {low high} $windows { if {$low <= $offset && $offset + $bytes <= $high} { set inside 1 } }
        if {!$inside} { error "$segment: [format %#x $offset] is outside of what $space gives" }
        lappend places [list $offset [expr {$offset + $bytes}] $segment]
        lappend have $segment
    }
    foreach entry $::excluded { if {[lindex $entry 0] eq $space} { lappend have [lindex $entry 1] } }
    foreach segment $wanted { if {$segment ni $have} { error "$space: $segment has no address and is not excluded" } }
    set end -1
    foreach place [lsort -integer -index 0 $places] {
        if {[lindex $place 0] < $end} { error "$space: [lindex $place 2] overlaps" }
        set end [lindex $place 1]
    }
}
