// A memory with one write port and one read port, as block RAM, UltraRAM or LUT RAM keep it.
//
// Reading takes LATENCY (1 or 2) enabled cycles; while read_enable is low the output stays. A word
// read in the cycle in which it is written may be the old or the new one: no user reads it then.
module lichen_memory #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 2,
    parameter int LATENCY = 1,
    // "auto", "block", "ultra", "distributed", or "split": whole UltraRAMs (4096 words) and block
    // RAM for the words that are left over
    parameter STYLE = "auto",
    localparam int BITS = DEPTH > 1 ? $clog2(DEPTH) : 1
) (
    input  logic             clk,
    input  logic             write_enable,
    input  logic [BITS-1:0]  write_address,
    input  logic [WIDTH-1:0] write_data,
    input  logic             read_enable,
    input  logic [BITS-1:0]  read_address,
    output logic [WIDTH-1:0] read_data
);
  localparam int ULTRA = 4096;
  localparam int LOW = DEPTH / ULTRA * ULTRA;  // words in UltraRAM

  generate
    if (STYLE == "split" && LOW > 0 && LOW < DEPTH) begin : split
      (* ram_style = "ultra" *) logic [WIDTH-1:0] low_words[LOW];
      (* ram_style = "block" *) logic [WIDTH-1:0] high_words[DEPTH-LOW];
      logic [WIDTH-1:0] low_word, high_word;
      logic write_high, read_high, late_high;
      assign write_high = write_address >= BITS'(LOW);
      assign read_high = read_address >= BITS'(LOW);
      always_ff @(posedge clk) if (write_enable && !write_high) low_words[write_address] <= write_data;
      always_ff @(posedge clk)
        if (write_enable && write_high) high_words[write_address-BITS'(LOW)] <= write_data;
      always_ff @(posedge clk) if (read_enable) low_word <= low_words[read_high ? '0 : read_address];
      always_ff @(posedge clk)
        if (read_enable) high_word <= high_words[read_high ? read_address-BITS'(LOW) : '0];
      always_ff @(posedge clk) if (read_enable) late_high <= read_high;
      if (LATENCY == 1) begin : direct
        assign read_data = late_high ? high_word : low_word;
      end else begin : registered
        always_ff @(posedge clk) if (read_enable) read_data <= late_high ? high_word : low_word;
      end
    end else begin : whole
      (* ram_style = STYLE *) logic [WIDTH-1:0] words[DEPTH];
      logic [WIDTH-1:0] word;
      always_ff @(posedge clk) if (write_enable) words[write_address] <= write_data;
      always_ff @(posedge clk) if (read_enable) word <= words[read_address];
      if (LATENCY == 1) begin : direct
        assign read_data = word;
      end else begin : registered
        always_ff @(posedge clk) if (read_enable) read_data <= word;
      end
    end
  endgenerate
endmodule
