// A memory with one write port and one read port, as UltraRAM, block RAM and LUT RAM keep it.
//
// Words 0 .. ULTRA-1 lie in UltraRAM, the next BLOCK in block RAM, the rest in LUT RAM. ULTRA is a
// multiple of 4096 or DEPTH, and fewer than 4096 words follow UltraRAM; ULTRA + BLOCK is DEPTH, or a
// multiple of 512 that at most 512 follow, or of 1024 that at most 1024 follow. So what lies higher
// is chosen by the upper bits of the address and addressed by the lower ones, without an adder.
//
// Reading takes LATENCY (1 or 2) enabled cycles; while read_enable is low the output stays. A word
// read in the cycle in which it is written may be the old or the new one: no user reads it then.
module lichen_memory #(
    parameter int WIDTH = 8,
    parameter int DEPTH = 2,
    parameter int LATENCY = 1,
    parameter int ULTRA = 0,
    parameter int BLOCK = DEPTH,
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
  localparam int END = ULTRA + BLOCK;  // where LUT RAM begins
  localparam int TAIL = DEPTH - END <= 512 ? 9 : 10;  // bits of an address in LUT RAM
  localparam bit HAS_ULTRA = ULTRA > 0;
  localparam bit HAS_BLOCK = BLOCK > 0;
  localparam bit HAS_LUTS = END < DEPTH;
  localparam bit SINGLE = 32'(HAS_ULTRA) + 32'(HAS_BLOCK) + 32'(HAS_LUTS) == 1;

  logic [WIDTH-1:0] ultra_word, block_word, lut_word, word;
  // Which region an address is in: beyond UltraRAM, beyond block RAM.
  logic write_above, write_last, read_above, read_last, above, last;

  generate
    if (SINGLE) begin : single
      assign write_above = 1'b0;
      assign write_last = 1'b0;
      assign read_above = 1'b0;
      assign read_last = 1'b0;
      assign above = 1'b0;
      assign last = 1'b0;
      assign word = HAS_ULTRA ? ultra_word : HAS_BLOCK ? block_word : lut_word;
    end else begin : regions
      assign write_above = !HAS_ULTRA || (write_address >> 12) == BITS'(ULTRA / 4096);
      assign write_last = HAS_LUTS && (write_address >> TAIL) == BITS'(END >> TAIL);
      assign read_above = !HAS_ULTRA || (read_address >> 12) == BITS'(ULTRA / 4096);
      assign read_last = HAS_LUTS && (read_address >> TAIL) == BITS'(END >> TAIL);
      always_ff @(posedge clk) if (read_enable) above <= read_above;
      always_ff @(posedge clk) if (read_enable) last <= read_last;
      assign word = last ? lut_word : above ? (HAS_BLOCK ? block_word : lut_word) : ultra_word;
    end

    if (HAS_ULTRA) begin : ultra
      localparam int SIZE = SINGLE ? BITS : ULTRA > 1 ? $clog2(ULTRA) : 1;
      (* ram_style = "ultra" *) logic [WIDTH-1:0] words[ULTRA];
      always_ff @(posedge clk)
        if (write_enable && !write_above) words[write_address[SIZE-1:0]] <= write_data;
      always_ff @(posedge clk) if (read_enable) ultra_word <= words[read_address[SIZE-1:0]];
    end else begin : no_ultra
      assign ultra_word = '0;
    end

    if (HAS_BLOCK) begin : block
      // Beyond UltraRAM fewer than 4096 words are left, if there is any UltraRAM.
      localparam int SIZE = HAS_ULTRA ? (BITS < 12 ? BITS : 12) : BITS;
      (* ram_style = "block" *) logic [WIDTH-1:0] words[BLOCK];
      always_ff @(posedge clk)
        if (write_enable && (SINGLE || (write_above && !write_last)))
          words[write_address[SIZE-1:0]] <= write_data;
      always_ff @(posedge clk) if (read_enable) block_word <= words[read_address[SIZE-1:0]];
    end else begin : no_block
      assign block_word = '0;
    end

    if (HAS_LUTS) begin : luts
      localparam int SIZE = SINGLE || BITS < TAIL ? BITS : TAIL;
      (* ram_style = "distributed" *) logic [WIDTH-1:0] words[DEPTH-END];
      always_ff @(posedge clk)
        if (write_enable && (SINGLE || write_last)) words[write_address[SIZE-1:0]] <= write_data;
      always_ff @(posedge clk) if (read_enable) lut_word <= words[read_address[SIZE-1:0]];
    end else begin : no_luts
      assign lut_word = '0;
    end

    if (LATENCY == 1) begin : direct
      assign read_data = word;
    end else begin : registered
      always_ff @(posedge clk) if (read_enable) read_data <= word;
    end
  endgenerate
endmodule
